"""What every method's model must do, in the spirit of transformers' ModelTesterMixin.

A method's test subclasses [`SSLModelTester`] with a tiny configuration and a batch; pytest collects the rest.
"""

import copy
import logging
import subprocess
import sys
from typing import Any, ClassVar

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, PreTrainedModel

from hf_ssl.models import SSLConfig, SSLOutput, SSLPreTrainedModel, Step
from hf_ssl.views import Draws

from ..device import DEVICE


class SSLModelTester:
    """
    Subclasses set `model_class`, make a tiny `config()` with every loss on, and a `batch()` of `forward`'s arguments.
    """

    model_class: ClassVar[type[SSLPreTrainedModel]]
    # Where the class of the published encoder comes from, in a process that has imported hf_ssl.
    encoder_module: ClassVar[str] = "transformers."
    # Values that the configuration must refuse, by field.
    wrong_values: ClassVar[dict[str, Any]] = {}

    def config(self, **overrides: Any) -> SSLConfig:
        raise NotImplementedError

    def batch(self, model: SSLPreTrainedModel) -> dict[str, Tensor]:
        raise NotImplementedError

    @pytest.fixture
    def model(self) -> SSLPreTrainedModel:
        torch.manual_seed(0)
        return self.model_class(self.config()).to(DEVICE)

    def photos(self, encoder: PreTrainedModel) -> Tensor:
        """Images of the published encoder's size, which may not be that of the batch."""
        return torch.randn(4, 3, encoder.config.image_size, encoder.config.image_size, device=DEVICE)

    def num_images(self, batch: dict[str, Tensor]) -> int:
        """Images in a batch; several views may come first."""
        return len(batch["pixel_values"])

    def loss(self, model: SSLPreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
        return model(**batch).loss

    # ---- configuration ----

    def test_config_round_trip(self, tmp_path):
        config = self.config()
        config.save_pretrained(tmp_path)
        for loaded in (type(config).from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
            assert type(loaded) is type(config)
            # The name of the folder and the version that wrote the file are not part of the configuration.
            notes = {"_name_or_path": None, "transformers_version": None}
            assert loaded.to_dict() | notes == config.to_dict() | notes

    def test_config_refuses_unknown_fields(self):
        with pytest.raises(ValueError, match="no field 'no_such_field'"):
            self.config(no_such_field=1)

    def test_config_refuses_wrong_values(self):
        assert self.wrong_values
        for name, value in self.wrong_values.items():
            with pytest.raises((ValueError, StrictDataclassError), match=name):
                self.config(**{name: value})

    # ---- saving and loading ----

    def test_save_and_load(self, model, tmp_path):
        batch = self.batch(model)
        model.eval()
        expected = model(**batch)
        model.save_pretrained(tmp_path, save_original_format=False)
        model.save_state(tmp_path)
        for loader in (self.model_class, AutoModelForPreTraining):
            loaded, info = loader.from_pretrained(tmp_path, output_loading_info=True)
            assert type(loaded) is self.model_class
            assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
            loaded.to(DEVICE).eval()
            loaded.load_state(tmp_path)
            assert torch.equal(loaded(**batch).loss, expected.loss)
            for name, tensor in model.state_dict().items():
                assert torch.equal(tensor, loaded.state_dict()[name]), name

    def test_nothing_uninitialized_after_load(self, model, tmp_path):
        """Tensors that a file lacks are initialized, as a new model's are, and not left to whatever memory holds."""
        model.save_pretrained(tmp_path, save_original_format=False)
        from safetensors.torch import load_file, save_file

        path = tmp_path / "model.safetensors"
        kept = load_file(path)
        dropped = sorted(kept)[::3]
        save_file({n: t for n, t in kept.items() if n not in dropped}, path, metadata={"format": "pt"})
        torch.manual_seed(1)
        loaded = self.model_class.from_pretrained(tmp_path)
        for name, tensor in loaded.state_dict().items():
            assert tensor.isfinite().all() and tensor.device.type == "cpu", name
            if name in dropped:
                fresh = model.state_dict()[name]
                if fresh.dtype.is_floating_point and fresh.numel() > 100 and fresh.std() > 0:
                    assert tensor.std() == pytest.approx(fresh.std().item(), rel=0.5), name
            else:
                assert torch.equal(tensor, kept[name].to(tensor.device)), name

    def test_frozen_after_load(self, model, tmp_path):
        model.save_pretrained(tmp_path, save_original_format=False)
        loaded = self.model_class.from_pretrained(tmp_path)
        trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        assert {name for name, p in loaded.named_parameters() if p.requires_grad} == trainable
        if hasattr(loaded, "teacher") and loaded.teacher is not None:
            assert not any(p.requires_grad for p in loaded.teacher.parameters())

    # ---- the loss ----

    def test_output(self, model):
        output = model(**self.batch(model))
        assert isinstance(output, SSLOutput)
        assert output.loss.shape == () and output.loss.isfinite()
        assert output.losses and all(value.shape == () for value in output.losses.values())
        assert all(value.shape == () for value in (output.metrics or {}).values())

    def test_gradient_reaches_every_trainable_parameter(self, model):
        self.loss(model, self.batch(model)).backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, f"{name} is trainable but gets no gradient"
                assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name
            else:
                assert parameter.grad is None, f"{name} is frozen but gets a gradient"

    def test_deterministic(self, model):
        batch = self.batch(model)
        model.eval()
        first, second = model(**batch), model(**batch)
        assert torch.equal(first.loss, second.loss)

    def test_same_seed_same_model(self):
        states = []
        for _ in range(2):
            torch.manual_seed(3)
            states.append(self.model_class(self.config()).state_dict())
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    def test_loss_falls_on_one_batch(self, model):
        batch = self.batch(model)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
        model.train()
        first = self.loss(model, batch).item()
        for _ in range(30):
            optimizer.zero_grad()
            self.loss(model, batch).backward()
            optimizer.step()
        assert self.loss(model, batch).item() < 0.9 * first

    def test_bfloat16(self, model):
        batch = self.batch(model)
        model.eval()
        expected = self.loss(model, batch)
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            actual = self.loss(model, batch)
        assert actual.dtype == torch.float32, "the loss is computed in float32 under autocast"
        assert actual.item() == pytest.approx(expected.item(), rel=0.02)
        actual.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)

    def test_activation_checkpointing(self, model):
        batch = self.batch(model)
        model.train()
        twin = copy.deepcopy(model)
        twin.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        assert any(getattr(module, "gradient_checkpointing", False) for module in twin.modules())
        results = []
        for candidate in (model, twin):
            loss = self.loss(candidate, batch)
            loss.backward()
            results.append((loss, {n: p.grad for n, p in candidate.named_parameters() if p.grad is not None}))
        (loss, gradients), (other_loss, other_gradients) = results
        assert torch.equal(loss, other_loss)
        assert gradients.keys() == other_gradients.keys()
        for name in gradients:
            torch.testing.assert_close(gradients[name], other_gradients[name], rtol=1e-5, atol=1e-7)

    def test_attention_implementations_agree(self, model):
        batch = self.batch(model)
        model.eval()
        losses = []
        for implementation in ("sdpa", "eager"):
            model.set_attn_implementation(implementation)
            losses.append(self.loss(model, batch).item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)

    def test_step_inputs(self, model):
        """A function of the key alone, accepted by `forward`, and without a trace in the global random state."""
        batch = self.batch(model)
        size = self.num_images(batch)
        before = torch.get_rng_state()
        values = {name: schedule(3) for name, schedule in model.schedules(10, 5).items()}
        index = torch.arange(size, device=DEVICE)
        inputs = [
            model.step_inputs(
                Step(
                    Draws.for_batch(0, step, device=DEVICE),
                    Draws.for_samples(0, torch.full_like(index, step), index),
                    values,
                )
            )
            for step in (5, 5, 6)
        ]
        assert torch.equal(before, torch.get_rng_state())
        tensors = [name for name, value in inputs[0].items() if isinstance(value, torch.Tensor)]
        assert all(torch.equal(inputs[0][name], inputs[1][name]) for name in tensors)
        if tensors:
            assert any(not torch.equal(inputs[0][name], inputs[2][name]) for name in tensors)
        assert model(**batch | inputs[0]).loss.isfinite()

    # ---- the published encoder ----

    def test_export(self, model, tmp_path, caplog):
        before = torch.get_rng_state()
        encoder = model.export_encoder()
        assert torch.equal(before, torch.get_rng_state()), "exporting in mid-run must not disturb the run"
        assert not encoder.training
        encoder.save_pretrained(tmp_path)
        with caplog.at_level(logging.WARNING):
            loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not caplog.records, caplog.text
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        assert type(loaded).__module__.startswith(self.encoder_module)
        pixel_values = self.photos(encoder)
        encoders = (encoder, loaded.to(DEVICE), AutoModel.from_pretrained(tmp_path).to(DEVICE))
        outputs = [e(pixel_values).pooler_output for e in encoders]
        assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[1], outputs[2])

    def test_export_is_a_copy(self, model):
        encoder = model.export_encoder()
        expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(1.0)
        assert all(torch.equal(expected[name], tensor) for name, tensor in model.state_dict().items())

    @pytest.mark.slow
    def test_export_without_the_library(self, model, tmp_path):
        """A process that never imports hf_ssl gets the same features; in one for all: `tests/hub/test_transformers_4.py`."""
        encoder = model.export_encoder()
        encoder.save_pretrained(tmp_path)
        pixel_values = self.photos(encoder)
        torch.save(pixel_values, tmp_path / "pixel_values.pt")
        code = (
            "import sys, torch; from transformers import AutoModel\n"
            f"model = AutoModel.from_pretrained({str(tmp_path)!r}).to({DEVICE!r})\n"
            f"pixel_values = torch.load({str(tmp_path / 'pixel_values.pt')!r}, weights_only=True, map_location={DEVICE!r})\n"
            "output = model(pixel_values)\n"
            f"torch.save([output.last_hidden_state, output.pooler_output], {str(tmp_path / 'output.pt')!r})\n"
            "assert not any(name.split('.')[0] == 'hf_ssl' for name in sys.modules)\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
        tokens, pooled = torch.load(tmp_path / "output.pt", weights_only=True, map_location=DEVICE)
        expected = encoder(pixel_values)
        torch.testing.assert_close(tokens, expected.last_hidden_state)
        torch.testing.assert_close(pooled, expected.pooler_output)
