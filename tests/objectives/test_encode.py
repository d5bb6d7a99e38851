"""From a batch to features: one pass per size, and the two sub-batches put together."""

import torch

from ser_lightning.objectives.encode import encode, global_views, joint_embeddings
from support import tiny_batch, tiny_moco


def test_views_of_equal_size_are_encoded_as_if_alone():
    module, batch = tiny_moco(), tiny_batch(num_local=4)
    features = encode(module.backbone, batch)
    for view, output in zip(
        (*batch.crop, *batch.invertible), (*features.crop, *features.invertible), strict=True
    ):
        torch.testing.assert_close(module.backbone(view.pixels), output.embedding)


def test_views_of_equal_size_share_one_pass():
    module, batch = tiny_moco(), tiny_batch(num_invertible=0, num_local=4)
    calls = []
    module.backbone.vit.patch_embed.register_forward_hook(lambda *_: calls.append(1))
    encode(module.backbone, batch)
    assert len(calls) == 2  # of global and of local size


def test_global_views_leave_local_ones_out():
    batch = global_views(tiny_batch(num_local=4))
    assert [view.pixels.shape[-1] for view in batch.crop] == [16, 16]
    assert len(batch.invertible) == 2


def test_joint_embeddings_put_the_invertible_images_behind_the_crops():
    module, batch = tiny_moco(), tiny_batch(num_crop=3, num_invertible=2, num_local=2)
    features = encode(module.backbone, batch)
    joint = joint_embeddings(features)
    assert [len(view) for view in joint] == [5] * 4
    for view, crop, invertible in zip(joint, features.crop, features.invertible, strict=True):
        assert torch.equal(view[:3], crop.embedding)
        assert torch.equal(view[3:], invertible.embedding)


def test_extra_views_have_the_taps_of_views_alone_and_no_other_blocks_run():
    module, batch = tiny_moco(), tiny_batch()
    plain = batch.crop[0]
    rows = []
    module.backbone.vit.blocks[-1].mlp.register_forward_hook(lambda *x: rows.append(len(x[2])))
    without = encode(module.backbone, batch)
    features = encode(module.backbone, batch._replace(extra=(plain, plain)))
    assert rows == [2 * (6 + 4)] * 2  # [CLS] of both views of all images
    assert without.extra == ()
    assert len(features.extra) == 2
    for taps in features.extra:
        torch.testing.assert_close(taps[0].tokens, without.crop[0].taps[0].tokens)
