import numpy as np

from swn_d2.audit.objects import find_duplicates, find_missing_objects

from .synthetic import annotations, detections

BOX, BELOW = (10, 10, 50, 50), (10, 120, 50, 160)


def shifted(box, x):
    return (box[0] + x, box[1], box[2] + x, box[3])


FAR = shifted(BOX, 100)


def test_duplicates():
    data = annotations(
        [BOX, shifted(BOX, 2), shifted(BOX, 3), shifted(BOX, 100), BOX],
        [0, 0, 1, 0, 0],
        image=[0, 0, 0, 0, 1],
    )
    iou, earlier = find_duplicates(data)
    np.testing.assert_allclose(iou, [0, 38 / 42, 0, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(earlier, [-1, 0, -1, -1, -1])


def scene(rng, hidden_share, num_pictures=300):
    """Two objects in each picture, found with a high score, some of which are not annotated; and
    mistakes with low scores."""
    boxes, images, found, hidden = [], [], [], []
    for picture in range(num_pictures):
        for box in (BOX, shifted(BOX, 100)):
            found.append((picture, box, 0, rng.beta(6, 2)))
            is_hidden = picture and rng.random() < hidden_share  # no picture without a number
            hidden.append(is_hidden)
            if not is_hidden:
                boxes.append(box)
                images.append(picture)
        found.append((picture, (20, 120, 60, 160), 1, rng.beta(2, 6)))
    data = annotations(boxes, [0] * len(boxes), image=images)
    return detections(found, num_objects=len(boxes)), data, sum(hidden)


def test_missing_objects():
    evidence, data, number = scene(np.random.default_rng(0), 0.2)
    found = find_missing_objects(evidence, data)
    is_object = found.boxes[:, 1] < 100  # mistakes lie lower
    assert is_object.sum() == number
    order = np.argsort(-found.suspicion)
    assert is_object[order[: number // 2]].mean() > 0.9
    assert 0.7 * number < found.suspicion.sum() < 1.3 * number
    # Nothing is certain, and the most suspicious are in order.
    assert found.suspicion.max() < 1 and len(np.unique(found.suspicion)) == len(found.suspicion)
    assert (found.classes[is_object] == 0).all()


def ambiguous_scene(hidden_share, mistake, num_pictures=400):
    """An object in each picture, some not annotated, with a mistake in every second one whose score
    tells nothing.

    Args:
        mistake: (box, class, of what score a second class is found at the place of objects); with
            none, it is a part of an annotated object.
    """
    rng = np.random.default_rng(0)
    boxes, images, found = [], [], []
    box, class_, second = mistake
    is_part = not second
    for picture in range(num_pictures):
        is_hidden = picture and rng.random() < hidden_share
        place = shifted(BOX, 100) if is_hidden else BOX
        found.append((picture, place, 0, rng.beta(6, 2)))
        if second:
            found.append((picture, place, 1, second))
        if not is_hidden:
            boxes.append(BOX)
            images.append(picture)
        if picture % 2 and not (is_hidden and is_part):
            found.append((picture, box, class_, rng.beta(6, 2)))
    data = annotations(boxes, [0] * len(boxes), image=images)
    missing = find_missing_objects(detections(found, num_objects=len(boxes)), data)
    is_object = missing.boxes[:, 0] >= 100
    assert is_object.any() and (missing.classes[is_object] == 0).all()
    return missing.suspicion[is_object], missing.suspicion[~is_object]


def test_parts_of_annotated_objects_are_less_suspicious():
    objects, mistakes = ambiguous_scene(0.2, (shifted(BOX, 20), 0, 0))  # an IoU of 1/3
    assert objects.mean() > 0.25 and mistakes.mean() < 0.05


def test_what_is_found_at_a_place_beside_counts():
    objects, mistakes = ambiguous_scene(0.2, ((10, 120, 50, 160), 0, 0.3))
    assert objects.mean() > 0.25 and mistakes.mean() < 0.05


def two_kinds(picture_of, num_pictures=400):
    """The mean suspicions of objects that are not annotated, a fifth of all, and of mistakes, whose
    scores are alike.

    Args:
        picture_of: (rng, number) -> the objects and the mistakes of a picture, each a list of (box,
            class).
    """
    rng = np.random.default_rng(0)
    boxes, classes, images, found, hidden = [], [], [], [], set()
    for picture in range(num_pictures):
        objects, mistakes = picture_of(rng, picture)
        found += [(picture, *thing, rng.beta(6, 2)) for thing in (*objects, *mistakes)]
        for box, class_ in objects:
            if rng.random() < 0.2:
                hidden.add((picture, *np.float32(box)))
            else:
                boxes.append(box)
                classes.append(class_)
                images.append(picture)
    data = annotations(boxes, classes, image=images)
    missing = find_missing_objects(detections(found, num_objects=len(boxes)), data)
    places = zip(missing.image, missing.boxes, strict=True)
    is_object = np.array([(image, *box) in hidden for image, box in places])
    assert is_object.sum() == len(hidden) and (~is_object).sum() > 50
    return missing.suspicion[is_object].mean(), missing.suspicion[~is_object].mean()


def test_that_small_objects_are_left_out_does_not_acquit_them():
    large, small = (10, 10, 110, 110), (10, 130, 20, 140)
    rng = np.random.default_rng(0)
    boxes, images, found = [], [], []
    for picture in range(300):
        found += [(picture, box, 0, rng.beta(6, 2)) for box in (large, small)]
        found.append((picture, shifted(large, 120), 0, rng.beta(2, 6)))
        annotated = [large, small] if picture % 2 else [large]
        boxes += annotated
        images += [picture] * len(annotated)
    data = annotations(boxes, [0] * len(boxes), image=images)
    missing = find_missing_objects(detections(found, num_objects=len(boxes)), data)
    is_object = missing.boxes[:, 0] < 100
    assert is_object.sum() == 150
    assert missing.suspicion[is_object].mean() > 0.5


def test_what_overlaps_an_annotated_object_of_another_class_is_less_suspicious():
    beside = shifted(BOX, 20)  # an IoU of 1/3
    objects, mistakes = two_kinds(
        lambda rng, number: (
            [(BOX, number % 2), (FAR, 1 - number % 2), (BELOW, 1 - number % 2)],
            [(beside, 1 - number % 2)] if number % 3 else [],
        )
    )
    assert objects > 0.4 and mistakes < 0.15


def test_objects_are_where_others_of_their_class_are():
    objects, mistakes = two_kinds(
        lambda rng, number: (
            [(BOX, number % 2), (FAR, number % 2)],
            [(BELOW, 1 - number % 2)] if number % 3 else [],
        )
    )
    assert objects > 0.4 and mistakes < 0.15


def test_that_all_of_a_class_are_left_out_in_a_picture_does_not_acquit_them():
    rng = np.random.default_rng(0)
    boxes, images, found = [], [], []
    for picture in range(300):
        found += [(picture, box, 0, rng.beta(6, 2)) for box in (BOX, FAR)]
        found.append((picture, BELOW, 0, rng.beta(2, 6)))
        if picture % 5:
            boxes += [BOX, FAR]
            images += [picture] * 2
    data = annotations(boxes, [0] * len(boxes), image=images)
    missing = find_missing_objects(detections(found, num_objects=len(boxes)), data)
    is_object = missing.boxes[:, 1] < 100
    assert is_object.sum() == 120
    assert missing.suspicion[is_object].mean() > 0.5
    assert missing.suspicion[~is_object].mean() < 0.1


def test_that_a_class_is_left_out_more_than_others_does_not_acquit_it():
    rng = np.random.default_rng(0)
    boxes, classes, images, found = [], [], [], []
    for picture in range(400):
        for class_, box, share in ((0, BOX, 0.05), (1, FAR, 0.5)):
            found.append((picture, box, class_, rng.beta(6, 2)))
            if picture == 399 or rng.random() >= share:  # no picture without a number
                boxes.append(box)
                classes.append(class_)
                images.append(picture)
        found.append((picture, BELOW, picture % 2, rng.beta(2, 6)))
    data = annotations(boxes, classes, image=images)
    missing = find_missing_objects(detections(found, num_objects=len(boxes)), data)
    is_object = missing.boxes[:, 1] < 100
    assert is_object.sum() == 800 - len(boxes)
    assert missing.suspicion[is_object & (missing.classes == 1)].mean() > 0.5
    assert missing.suspicion[~is_object].mean() < 0.1


def test_where_another_class_is_annotated_an_object_may_be_nearer():
    near, nearer = (10, 10, 50, 28), (10, 10, 50, 32)  # an IoU of 0.45 and 0.55
    for box, class_, number in ((near, 0, 0), (near, 1, 1), (nearer, 1, 0)):
        evidence = detections([(0, box, class_, 0.9)], num_objects=1)
        assert len(find_missing_objects(evidence, annotations([BOX], [0])).image) == number


def test_nothing_is_missing():
    evidence, data, _ = scene(np.random.default_rng(0), 0)
    found = find_missing_objects(evidence, data)
    assert len(found.suspicion) and found.suspicion.sum() < 0.05 * len(data.ids)


def test_what_is_in_a_crowd_or_found_twice():
    found = [(0, BOX, 0, 0.9), (0, shifted(BOX, 1), 1, 0.8), (1, BOX, 0, 0.9), (2, BOX, 0, 0.9)]
    data = annotations(
        [shifted(BOX, 100)] * 2, [0, 0], image=[0, 2], crowds=[(1, (0, 0, 100, 100)), (2, BOX)]
    )
    missing = find_missing_objects(detections(found, num_objects=2), data)
    np.testing.assert_array_equal(missing.image, [0])
    np.testing.assert_array_equal(missing.classes, [0])  # the one with the larger score
    # Nobody has seen what a right detection looks like here.
    np.testing.assert_array_equal(missing.suspicion, [0])


def test_no_detection_at_all():
    missing = find_missing_objects(detections([], num_objects=1), annotations([BOX], [0]))
    assert len(missing.suspicion) == len(missing.boxes) == 0
