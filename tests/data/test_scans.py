"""Scans on the host against hand-computed cells and pixels, SciPy's KD-tree and plain loops."""

import cv2
import numpy as np
import pytest
import scipy.spatial

from placerec_jax.data import scans
from placerec_jax.ops import rigid
from placerec_jax.ops.grid import Grid2D
from placerec_jax.ops.point_steps import POINT_UNIT, decode_points, encode_points

GRID = Grid2D((-32.0, 32.0, -32.0, 32.0), 0.2)
Z = (-2.5, 1.5)


def cloud(rng, n=5000, reach=31.9):
    xyz = rng.uniform([-reach, -reach, -3.0], [reach, reach, 2.0], (n, 3)).astype(np.float32)
    return xyz, rng.random(n, np.float32)


class TestPointSteps:
    def test_round_trip_to_half_a_unit_and_clipped_beyond_reach(self):
        rng = np.random.default_rng(0)
        xyz = rng.uniform(-159.0, 159.0, (1000, 3))
        back = decode_points(encode_points(xyz))
        assert np.abs(back - xyz).max() <= POINT_UNIT / 2 + 1e-5
        far = np.array([[300.0, -300.0, 0.0], [1.0, 2.0, 3.0]])
        np.testing.assert_allclose(
            decode_points(encode_points(far)), [[160, -160, 0], [1, 2, 3]], atol=POINT_UNIT / 2 + 1e-5
        )

    def test_no_points(self):
        assert decode_points(encode_points(np.zeros((0, 3)))).shape == (0, 3)

    def test_points_of_a_record(self):
        record = {
            "point_steps": encode_points(np.array([[1.0, -2.0, 0.5]])),
            "reflectance": np.array([51], np.uint8),
        }
        xyz, reflectance = scans.points_of(record)
        np.testing.assert_allclose(xyz, [[1.0, -2.0, 0.5]], atol=1e-6)
        np.testing.assert_allclose(reflectance, [0.2])
        assert xyz.dtype == reflectance.dtype == np.float32


class TestCells:
    def test_the_lower_border_is_in_and_the_upper_out(self):
        xyz = np.array(
            [
                [-32, 0, 0],
                [32, 0, 0],
                [0, -32, 0],
                [0, 32, 0],
                [0, 0, -2.5],
                [0, 0, 1.5],
                [31.99, 31.99, 1.49],
            ],
            np.float32,
        )
        cells = scans.cells_of(xyz, GRID, Z)
        np.testing.assert_array_equal(cells >= 0, [True, False, True, False, True, False, True])
        assert cells[0] == 160
        assert cells[2] == 160 * 320
        assert cells[6] == 320 * 320 - 1

    def test_every_centre_lies_in_its_own_cell(self):
        centers = GRID.centers().reshape(-1, 2)
        xyz = np.column_stack([centers, np.zeros(len(centers), np.float32)])
        np.testing.assert_array_equal(scans.cells_of(xyz, GRID, Z), np.arange(320 * 320))


class TestEncodings:
    def test_statistics_against_a_loop_over_cells(self):
        rng = np.random.default_rng(1)
        xyz, reflectance = cloud(rng, 3000, reach=3.0)
        xyz[:200, :2] = 0.5  # a crowded cell
        bev = scans.encode_bev(xyz, reflectance, GRID, Z, "statistics")
        expected = np.zeros((320, 320, 3))
        inside = (xyz[:, 2] >= -2.5) & (xyz[:, 2] < 1.5)
        index = np.floor((xyz[:, :2] + 32) / 0.2).astype(int)
        for i, j in np.unique(index[inside], axis=0):
            here = inside & (index == [i, j]).all(axis=1)
            expected[i, j] = (
                min(1.0, np.log(1 + here.sum()) / np.log(64)),
                (xyz[here, 2].max() + 2.5) / 4.0,
                reflectance[here].mean(),
            )
        np.testing.assert_allclose(bev, expected, atol=1e-5)
        assert bev[162, 162, 0] == 1.0

    def test_slices_against_a_loop_over_points(self):
        rng = np.random.default_rng(2)
        xyz, reflectance = cloud(rng)
        bev = scans.encode_bev(xyz, reflectance, GRID, Z, "height_slices")
        assert bev.shape == (320, 320, 20)
        expected = np.zeros_like(bev)
        for x, y, z in xyz.astype(np.float64):
            if Z[0] <= z < Z[1]:
                expected[int((x + 32) // 0.2), int((y + 32) // 0.2), int((z + 2.5) // 0.2)] = 1
        # Float32 may put a point on the other side of an edge that it all but touches.
        assert (bev != expected).sum() <= 4

    @pytest.mark.parametrize("encoding", sorted(scans.ENCODINGS))
    def test_channels_occupancy_and_emptiness(self, encoding):
        xyz, reflectance = cloud(np.random.default_rng(3), 400)
        reflectance[:] = 0
        bev = scans.encode_bev(xyz, reflectance, GRID, Z, encoding)
        cells = scans.cells_of(xyz, GRID, Z)
        assert bev.shape[-1] == scans.bev_channels(GRID, Z, encoding)
        assert bev.dtype == np.float32
        occupied = scans.occupied_cells(bev)
        np.testing.assert_array_equal(np.flatnonzero(occupied), np.unique(cells[cells >= 0]))
        empty = scans.encode_bev(xyz[:0], reflectance[:0], GRID, Z, encoding)
        assert not empty.any()

    @pytest.mark.parametrize("encoding", sorted(scans.ENCODINGS))
    def test_a_cloud_turned_by_90_degrees_turns_the_array(self, encoding):
        xyz, reflectance = cloud(np.random.default_rng(4))
        bev = scans.encode_bev(xyz, reflectance, GRID, Z, encoding)
        turned = np.stack([-xyz[:, 1], xyz[:, 0], xyz[:, 2]], axis=1)
        turned_bev = scans.encode_bev(turned, reflectance, GRID, Z, encoding)
        # x' = -y, y' = x: rows run with -columns, columns with rows.
        expected = bev.transpose(1, 0, 2)[::-1]
        moved = (turned_bev != expected).any(axis=-1)
        assert moved.sum() <= 4  # points on an edge between cells, to float32
        np.testing.assert_array_equal(expected, np.rot90(bev, 1, axes=(0, 1)))


class TestAugmentation:
    def test_ranges_and_rigidity(self):
        rng = np.random.default_rng(5)
        augmentation = scans.ScanAugmentation()
        drawn = np.array([scans.draw_augmentation(augmentation, rng) for _ in range(2000)])
        rotation = drawn[:, :3, :3]
        identity = np.tile(np.eye(3), (2000, 1, 1))
        np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), identity, atol=1e-12)
        shift, limits = np.abs(drawn[:, :3, 3]).max(axis=0), [3.0, 3.0, 0.3]
        assert (shift <= limits).all()
        assert (shift > 0.95 * np.array(limits)).all()
        yaw = np.degrees(rigid.yaw_of(rotation))
        assert yaw.max() > 170
        assert yaw.min() < -170
        up = np.degrees(np.arccos(drawn[:, 2, 2]))
        assert 4.0 < up.max() <= np.degrees(np.arccos(np.cos(np.deg2rad(3)) ** 2)) + 1e-6

    def test_a_yaw_alone_is_a_turn_to_the_left(self):
        only_yaw = scans.ScanAugmentation(0.0, 0.0, 0.0, 90.0)
        A = scans.draw_augmentation(only_yaw, _Most())
        np.testing.assert_allclose(A[:3, :3] @ [1, 0, 0], [0, 1, 0], atol=1e-12)

    def test_h_maps_the_query_onto_the_positive_and_its_inverse_does_not(self):
        rng = np.random.default_rng(6)
        world = np.column_stack([rng.uniform(-30, 30, (50, 2)), np.zeros(50)])

        def pose(x, y, yaw):
            return rigid.rigid_matrix(scans._turn(2, yaw), np.array([x, y, 0.0]))

        map_T_q, map_T_p = pose(3, -2, 0.4), pose(1, 1, 3.0)
        planar = scans.ScanAugmentation(tilt=0.0, shift_z=0.0)
        A_q, A_p = (scans.draw_augmentation(planar, rng) for _ in range(2))
        seen_q = rigid.rigid_apply(A_q @ rigid.rigid_inverse(map_T_q), world)
        seen_p = rigid.rigid_apply(A_p @ rigid.rigid_inverse(map_T_p), world)
        p_T_q = scans.planar_transform(A_p, map_T_p, map_T_q, A_q)
        np.testing.assert_allclose(rigid.se2_apply(p_T_q, seen_q[:, :2]), seen_p[:, :2], atol=1e-9)
        wrong = rigid.se2_apply(rigid.se2_inverse(p_T_q), seen_q[:, :2])
        assert np.abs(wrong - seen_p[:, :2]).max() > 1.0
        moved = scans.move_points(A_q, seen_p.astype(np.float32))
        np.testing.assert_allclose(moved, rigid.rigid_apply(A_q, seen_p), atol=1e-4)

    def test_tilts_leave_the_plane_about_where_it_was(self):
        """±3° of roll and pitch: z·sin + r·(1 - cos) + r·sin² = 0.26 m at most inside the grid."""
        rng = np.random.default_rng(7)
        identity = np.eye(4)
        xyz = np.column_stack([rng.uniform(-32, 32, (300, 2)), rng.uniform(-2.5, 1.5, 300)])
        worst = 0.0
        for _ in range(200):
            A = scans.draw_augmentation(scans.ScanAugmentation(yaw=0.0), rng)
            planar = scans.planar_transform(A, identity, identity, identity)
            moved = rigid.rigid_apply(A, xyz)[:, :2]
            worst = max(worst, np.abs(moved - rigid.se2_apply(planar, xyz[:, :2])).max())
        assert 0.1 < worst < 0.264


class _Most:
    """A generator whose every uniform number is the highest."""

    def uniform(self, low, high, size):
        return np.full(size, high)


class TestDensity:
    GRID = Grid2D((-31.8, 32.2, -31.8, 32.2), 0.4)

    def picture(self):
        return np.random.default_rng(8).integers(0, 256, (151, 151, 1), np.uint8)

    @pytest.mark.parametrize("interpolation", sorted(scans.INTERPOLATIONS))
    def test_unmoved_it_is_padded_to_the_grid(self, interpolation):
        picture = self.picture()
        bev = scans.density_bev(picture, self.GRID, np.eye(4), interpolation=interpolation)
        assert bev.shape == (160, 160, 1)
        assert bev.dtype == np.float32
        np.testing.assert_allclose(bev[4:155, 4:155], picture / 255.0, atol=1e-6)
        assert not bev[:4].any()
        assert not bev[155:].any()
        # The LiDAR, the middle of the picture, is the origin of the grid.
        np.testing.assert_allclose(self.GRID.centers()[79, 79], [0.0, 0.0], atol=1e-5)

    def test_a_spot_moves_as_a_point_does(self):
        rng = np.random.default_rng(9)
        for _ in range(20):
            A = scans.draw_augmentation(scans.PLANAR, rng)
            picture = np.zeros((151, 151, 1), np.uint8)
            row, column = rng.integers(35, 116, 2)
            picture[row - 1 : row + 2, column - 1 : column + 2] = 200
            spot = (np.array([row, column]) - 75) * 0.4
            bev = scans.density_bev(picture, self.GRID, A)[..., 0]
            centre = (self.GRID.centers() * bev[..., None]).sum(axis=(0, 1)) / bev.sum()
            np.testing.assert_allclose(centre, A[:2, :2] @ spot + A[:2, 3], atol=0.05)

    def test_a_quarter_turn_is_exact(self):
        picture = self.picture()
        A = rigid.rigid_matrix(scans._turn(2, np.pi / 2), np.zeros(3))
        bev = scans.density_bev(picture, self.GRID, A, interpolation="nearest")
        np.testing.assert_allclose(bev[4:155, 4:155], np.rot90(picture, 1, axes=(0, 1)) / 255.0, atol=1e-6)

    def test_the_disc_holds_the_same_ground_at_every_heading(self):
        picture = np.full((151, 151, 1), 255, np.uint8)
        plain = scans.density_bev(picture, self.GRID, np.eye(4), radius=30.0)[..., 0]
        far = np.linalg.norm(self.GRID.centers(), axis=-1) > 30.0 + 1e-4
        np.testing.assert_array_equal(plain == 0, far)
        A = rigid.rigid_matrix(scans._turn(2, 0.7), np.zeros(3))
        turned = scans.density_bev(picture, self.GRID, A, radius=30.0)[..., 0]
        rim = np.abs(np.linalg.norm(self.GRID.centers(), axis=-1) - 30.0) < 0.5
        np.testing.assert_allclose(turned[~rim], plain[~rim], atol=1e-6)


class TestImageWindow:
    def test_kitti_by_hand(self):
        """1241 x 376 (KITTI 00): 45 columns go left, 4 rows come on top; then pixels halve."""
        window = scans.ImageWindow()
        assert window.shift((376, 1241)) == (4, -44)
        assert window.shape == (192, 576)
        pixels = np.array([[0, 44], [0, 43], [375, 1195], [100, 601], [375, 1196]], np.uint16)
        flat = window.pixels(pixels, (376, 1241))
        np.testing.assert_array_equal(flat, [2 * 576 + 0, -1, 189 * 576 + 575, 52 * 576 + 278, -1])

    def test_sides_as_the_spec_has_them(self):
        window = scans.ImageWindow()
        for height, width in ((376, 1241), (375, 1242), (370, 1226), (376, 1408), (385, 1151), (390, 1100)):
            rows = int(np.floor((384 - height) / 2)) if height <= 384 else -int(np.floor((height - 384) / 2))
            columns = (
                -int(np.floor((width - 1152) / 2)) if width >= 1152 else int(np.floor((1152 - width) / 2))
            )
            assert window.shift((height, width)) == (rows, columns)

    @pytest.mark.parametrize("size", [(376, 1241), (370, 1226), (376, 1408), (400, 1000), (384, 1152)])
    def test_the_picture_moves_as_pixels_do(self, size):
        rng = np.random.default_rng(10)
        window = scans.ImageWindow()
        image = np.zeros((*size, 3), np.uint8)
        spots = np.stack([rng.integers(0, n, 40) for n in size], axis=-1)
        flat = window.pixels(spots, size)
        for (row, column), pixel in zip(spots, flat, strict=True):
            image[:] = 0
            image[row, column] = (200, 100, 40)
            lit = np.flatnonzero(window.cut(image).any(axis=-1))
            np.testing.assert_array_equal(lit, [pixel] if pixel >= 0 else [])

    def test_means_of_four_pixels(self):
        rng = np.random.default_rng(11)
        image = rng.integers(0, 256, (376, 1241, 3), np.uint8)
        cut = scans.ImageWindow().cut(image)
        whole = np.zeros((384, 1152, 3))
        whole[4:380] = image[:, 44:1196]
        mean = whole.reshape(192, 2, 576, 2, 3).mean(axis=(1, 3))
        assert np.abs(cut - mean).max() <= 0.5

    def test_a_window_of_another_size_and_no_reduction(self):
        image = np.random.default_rng(12).integers(0, 256, (10, 20, 3), np.uint8)
        np.testing.assert_array_equal(scans.ImageWindow((6, 10), 1).cut(image), image[2:8, 5:15])
        with pytest.raises(ValueError, match="multiple"):
            scans.ImageWindow((7, 10), 2)


def linked_scene(rng, n=4000):
    """A cloud and links of half its points to pixels of a 376 x 1241 image, several points a pixel."""
    xyz, _ = cloud(rng, n, reach=12.0)
    points = np.sort(rng.choice(n, n // 2, replace=False)).astype(np.int32)
    pixels = np.stack([rng.integers(0, 376, n // 2), rng.integers(0, 1241, n // 2)], axis=1).astype(np.uint16)
    pixels = pixels // 6 * 6
    return xyz, {"image": np.zeros((376, 1241, 3), np.uint8), "link_point": points, "link_pixel": pixels}


class TestLinks:
    grid = Grid2D((-16.0, 16.0, -16.0, 16.0), 0.8)

    def expected(self, xyz, record):
        """{cell: set of pixels} point by point."""
        window, sets = scans.ImageWindow(), {}
        for point, (row, column) in zip(record["link_point"], record["link_pixel"].astype(int), strict=True):
            x, y, z = xyz[point].astype(np.float64)
            i, j = int((x + 16) // 0.8), int((y + 16) // 0.8)
            row, column = (row + 4) // 2, (column - 44) // 2
            if 0 <= i < 40 and 0 <= j < 40 and Z[0] <= z < Z[1] and 0 <= row < 192 and 0 <= column < 576:
                sets.setdefault(i * 40 + j, set()).add(row * window.shape[1] + column)
        return sets

    def test_a_large_table_holds_every_link_once(self):
        xyz, record = linked_scene(np.random.default_rng(13))
        cells = scans.cells_of(xyz, self.grid, Z)
        table = scans.link_table(cells, record, scans.ImageWindow(), 1600, 64, np.random.default_rng(0))
        rows = {
            int(cell): pixel[mask]
            for cell, pixel, mask in zip(
                *(table[k] for k in ("link_cell", "link_pixel", "link_mask")), strict=True
            )
            if mask.any()
        }
        expected = self.expected(xyz, record)
        assert {cell: set(pixels.tolist()) for cell, pixels in rows.items()} == expected
        assert all(len(pixels) == len(set(pixels.tolist())) for pixels in rows.values())

    def test_the_maximum_over_links_is_that_of_the_pairs(self):
        """Spec §2.4: with a large table, the masked maximum is a segment maximum over all pairs."""
        rng = np.random.default_rng(14)
        xyz, record = linked_scene(rng)
        cells = scans.cells_of(xyz, self.grid, Z)
        window = scans.ImageWindow()
        features = rng.random(192 * 576)
        table = scans.link_table(cells, record, window, 1600, 64, rng)
        pooled = np.where(table["link_mask"], features[table["link_pixel"]], -np.inf).max(axis=1)
        pixels = window.pixels(record["link_pixel"], (376, 1241))
        cell, pixel = scans.link_pairs(cells, record["link_point"], pixels)
        segments = np.full(1600, -np.inf)
        np.maximum.at(segments, cell, features[pixel])
        present = table["link_mask"].any(axis=1)
        np.testing.assert_array_equal(pooled[present], segments[table["link_cell"][present]])
        assert present.sum() == np.isfinite(segments).sum()
        # Fewer pixels a cell can only lower the maximum.
        small = scans.link_table(cells, record, window, 1600, 2, rng)
        lower = np.where(small["link_mask"], features[small["link_pixel"]], -np.inf).max(axis=1)
        assert (lower[present] <= pooled[present]).all()
        assert (lower[present] < pooled[present]).any()

    def test_what_is_too_much_is_left_out_at_random_and_by_the_seed(self):
        xyz, record = linked_scene(np.random.default_rng(15))
        cells = scans.cells_of(xyz, self.grid, Z)
        expected = self.expected(xyz, record)

        def table(seed):
            rng = np.random.default_rng(seed)
            return scans.link_table(cells, record, scans.ImageWindow(), 100, 3, rng)

        first, again, other = table(1), table(1), table(2)
        for key in first:
            np.testing.assert_array_equal(first[key], again[key])
        assert (first["link_cell"] != other["link_cell"]).any()
        assert first["link_mask"].any(axis=1).all()
        assert len(np.unique(first["link_cell"])) == 100
        for cell, pixel, mask in zip(
            first["link_cell"], first["link_pixel"], first["link_mask"], strict=True
        ):
            assert set(pixel[mask].tolist()) <= expected[int(cell)]
            assert mask.sum() == min(3, len(expected[int(cell)]))
        seen = np.bincount(np.concatenate([table(s)["link_cell"] for s in range(60)]), minlength=1600)
        share = seen[list(expected)] / 60
        assert abs(share.mean() - 100 / len(expected)) < 1e-9
        assert share.max() < 0.5

    def test_no_links_at_all(self):
        xyz, record = linked_scene(np.random.default_rng(16))
        cells = np.full(len(xyz), -1, np.int32)
        table = scans.link_table(cells, record, scans.ImageWindow(), 8, 4, np.random.default_rng(0))
        assert not table["link_mask"].any()
        assert table["link_cell"].shape == (8,)
        assert table["link_pixel"].dtype == table["link_cell"].dtype == np.int32


def labels_by_tree(occupied_q, occupied_p, p_T_q, grid, distance):
    """The rule of spec §4 by SciPy's KD-tree over all centres."""
    centers = grid.centers().astype(np.float64)
    q, p = centers[occupied_q], centers[occupied_p]
    q_in_p, p_in_q = rigid.se2_apply(p_T_q, q), rigid.se2_apply(rigid.se2_inverse(p_T_q), p)
    to_p, nearest_p = scipy.spatial.KDTree(p).query(q_in_p)
    _, nearest_q = scipy.spatial.KDTree(q_in_p).query(p)
    mutual = (nearest_q[nearest_p] == np.arange(len(q))) & (to_p <= distance)
    positive_p = np.zeros(len(p), bool)
    positive_p[nearest_p[mutual]] = True
    out = []
    low, high = np.array(grid.lower), np.array(grid.extent)[[1, 3]]
    for occupied, positive, moved in ((occupied_q, mutual, q_in_p), (occupied_p, positive_p, p_in_q)):
        label = np.full(grid.shape, scans.IGNORE, np.uint8)
        inside = ((moved >= low) & (moved < high)).all(axis=1)
        label[occupied] = np.where(inside, positive, scans.IGNORE)
        out.append(label)
    return out


class TestMatchingLabels:
    @pytest.mark.parametrize("cell", [0.2, 0.4, 0.1])
    def test_against_a_kd_tree(self, cell):
        rng = np.random.default_rng(17)
        grid = Grid2D((-8.0, 8.0, -8.0, 8.0), cell)
        for _ in range(10):
            occupied_q, occupied_p = (rng.random(grid.shape) < rng.uniform(0.02, 0.4) for _ in range(2))
            pose = rng.uniform([-3, -3, -np.pi], [3, 3, np.pi])
            expected = labels_by_tree(occupied_q, occupied_p, pose, grid, 0.2)
            found = scans.matching_labels(occupied_q, occupied_p, pose, grid, 0.2)
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_array_equal(a, b)

    def test_a_scan_matches_itself_wholly_also_half_a_cell_away(self):
        occupied = np.random.default_rng(18).random(GRID.shape) < 0.3
        label_q, label_p = scans.matching_labels(occupied, occupied, np.zeros(3), GRID)
        assert (label_q[occupied] == 1).all()
        assert (label_q[~occupied] == scans.IGNORE).all()
        np.testing.assert_array_equal(label_q, label_p)
        full = np.ones(GRID.shape, bool)
        label_q, label_p = scans.matching_labels(full, full, np.array([0.1, 0.0, 0.0]), GRID)
        # Every centre lies between two: the tie goes one way, except at the far border.
        assert (label_q == 1).mean() > 0.99
        assert (label_p == 1).mean() > 0.99

    def test_swapping_the_scans_swaps_the_labels(self):
        rng = np.random.default_rng(19)
        a, b = (rng.random(GRID.shape) < 0.2 for _ in range(2))
        pose = np.array([2.0, -1.0, 2.5])
        forward = scans.matching_labels(a, b, pose, GRID)
        backward = scans.matching_labels(b, a, rigid.se2_inverse(pose), GRID)
        np.testing.assert_array_equal(forward[0], backward[1])
        np.testing.assert_array_equal(forward[1], backward[0])

    def test_what_the_other_does_not_reach_says_nothing(self):
        full = np.ones(GRID.shape, bool)
        label_q, _ = scans.matching_labels(full, full, np.array([10.0, 0.0, 0.0]), GRID)
        assert (label_q[-50:] == scans.IGNORE).all()
        assert (label_q[:-50] == 1).all()

    def test_nothing_occupied(self):
        empty, full = np.zeros(GRID.shape, bool), np.ones(GRID.shape, bool)
        label_q, label_p = scans.matching_labels(empty, full, np.zeros(3), GRID)
        assert (label_q == scans.IGNORE).all()
        assert (label_p == 0).all()


@pytest.mark.real_data
def test_a_real_scan_fills_the_share_of_cells_that_was_measured(real_data):
    """Spec §1: of a KITTI-00 scan 10 to 16 % of the cells are non-empty, 114 k to 118 k points in range."""
    path = real_data / "kitti_odometry/dataset/sequences/00/velodyne/000094.bin"
    points = np.fromfile(path, "<f4").reshape(-1, 4)
    xyz = decode_points(encode_points(points[:, :3]))
    cells = scans.cells_of(xyz, GRID, Z)
    bev = scans.encode_bev(xyz, points[:, 3], GRID, Z, "statistics", cells)
    assert 0.10 < scans.occupied_cells(bev).mean() < 0.16
    assert 110_000 < (cells >= 0).sum() < 120_000
    assert cv2.imencode(".png", (bev * 255).astype(np.uint8))[0]
    assert 0 <= bev.min() <= bev.max() <= 1
