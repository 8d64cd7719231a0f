import torch
from torch import nn

from tpdm.pipelines import active_rows as rows_module
from tpdm.pipelines.active_rows import ActiveRows
from tpdm.pipelines.registry import DENOISERS


class Denoiser(nn.Module):
    """Returns latents + time, and remembers what it was given."""

    def forward(self, hidden_states, timestep, extras=None, ids=None, scale=2.0):
        self.given = {"hidden_states": hidden_states, "timestep": timestep, "extras": extras, "ids": ids}
        return (scale * hidden_states + timestep[:, None],)


def drive(monkeypatch, call, images, active):
    entry = DENOISERS["FluxTransformer2DModel"]
    monkeypatch.setattr(rows_module, "find_entry", lambda denoiser: entry)
    denoiser = Denoiser()
    with ActiveRows(denoiser, lambda: (images, active)) as rows:
        (output,) = call(denoiser)
    assert not denoiser._forward_hooks
    assert not denoiser._forward_pre_hooks
    return output, denoiser.given, rows.rows_per_call


def test_rows_of_guided_positional_and_nested_arguments_are_removed(monkeypatch):
    x, t = torch.randn(6, 4), torch.arange(6.0)
    extras = {"list": [torch.arange(6), torch.arange(5)], "scale": 0.5}
    output, given, counted = drive(monkeypatch, lambda d: d(x, t, extras=extras), 3, [0, 2])
    kept = [0, 2, 3, 5]
    assert counted == [4]
    assert given["timestep"].tolist() == kept
    assert given["extras"]["list"][0].tolist() == kept
    assert given["extras"]["list"][1].tolist() == [0, 1, 2, 3, 4]
    assert given["extras"]["scale"] == 0.5
    assert torch.equal(output[kept], (2 * x + t[:, None])[kept])
    assert torch.equal(output[[1, 4]], torch.zeros(2, 4))
    assert extras["list"][0].shape == (6,)  # the pipeline's own arguments are left alone


def test_calls_do_not_change_while_all_images_are_active(monkeypatch):
    x, t = torch.randn(2, 4), torch.arange(2.0)
    output, given, counted = drive(monkeypatch, lambda d: d(x, timestep=t, scale=1.0), 2, [0, 1])
    assert given["hidden_states"] is x
    assert counted == [2]
    assert torch.equal(output, x + t[:, None])


def test_output_classes_and_position_ids_are_supported(sd3):
    x, kwargs = (
        torch.randn(4, 4, 8, 8),
        {
            "encoder_hidden_states": torch.randn(4, 3, 32),
            "pooled_projections": torch.randn(4, 32),
            "timestep": torch.tensor([500.0] * 4),
        },
    )
    with torch.no_grad():
        expected = sd3.transformer(x, **kwargs).sample
        with ActiveRows(sd3.transformer, lambda: (4, [1, 2])):
            output = sd3.transformer(x, **kwargs)
    torch.testing.assert_close(output.sample[1:3], expected[1:3], atol=2e-6, rtol=0)
    assert not output.sample[[0, 3]].any()
