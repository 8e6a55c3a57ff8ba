"""NVBFacePipeline: one degraded face photo in, views of that face at any camera out, in one diffusion run."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from .camera import average_cameras, check_camera_params
from .pipeline_inputs import Cameras, ImageInput, camera_tensor, check_components, image_list, read_image, refuse_pickle

NUM_INFERENCE_STEPS = 50  # the paper's, where the checkpoint has no better
FIDELITY = 1.0  # of a restoration where there is a pixel restorer
CONDITIONING_BATCH = 32  # feature maps at a time before the UNet loop, where `view_batch_size` does not say

Callback = Callable[["NVBFacePipeline", int, Any, dict[str, Any]], dict[str, Any]]


@dataclass
class NVBFacePipelineOutput(BaseOutput):
    """Output of `NVBFacePipeline`.

    Args:
        images: the V views of the input as PIL images; for a list of inputs a list of such lists. With `output_type`
            "np" (V, H, W, 3) and "pt" (V, 3, H, W) in [0, 1], with "latent" (V, C, h, w); with B in front for a list.
        source_cameras: (B, 25), the camera of each input, as predicted or as given; None where no camera was needed.
        samples: with `num_samples` above 1 that many `images` of different noise, of which the first is `images`; for a
            list of inputs a list of such lists. As an array or tensor (K, V, ...), or (B, K, V, ...).
        deviation: (V, H, W), or (B, V, H, W): standard deviation of each pixel over the samples, in [0, 1], the mean of
            the three colors; None for latents. High where the photo did not determine the picture: it was invented.
    """

    images: list[Image.Image] | list[list[Image.Image]] | np.ndarray | torch.Tensor
    source_cameras: torch.Tensor | None
    samples: list[Any] | np.ndarray | torch.Tensor | None = None
    deviation: torch.Tensor | None = None


class NVBFacePipeline(DiffusionPipeline, StableDiffusionLoraLoaderMixin):
    """Pipeline of NVB-Face (arXiv 2603.01328).

    Args:
        image_encoder: reads the degraded photo at a time step (`TimeAwareImageEncoder`, Eq. 1).
        unet: denoises the latents of each view, its cross-attention reads the view's features.
        vae: decodes latents to pictures: AutoencoderKL, AutoencoderDC or AutoencoderTiny.
        scheduler: any of diffusers' schedulers for epsilon, v or sample prediction.
        view_transformer: lifts features into a volume and projects it to cameras (`ViewTransformer3D`, Eq. 3-6);
            without it the pipeline restores the input's own view (step 1).
        pixel_restorer: restores what the photo does show (`PixelRestorer`), for `fidelity`; without it restorations are
            the UNet's alone.
        default_num_inference_steps: denoising steps that suit these weights, for calls that ask for none.
        default_guidance_scale: the same for the guidance scale.

    Raises:
        ValueError: a component's width does not fit the UNet's cross-attention, or the scheduler's prediction type is
            none of epsilon, v_prediction and sample.
    """

    model_cpu_offload_seq = "image_encoder->view_transformer->unet->vae->pixel_restorer"
    _optional_components: ClassVar[list[str]] = ["view_transformer", "pixel_restorer"]
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "encoder_hidden_states"]
    _lora_loadable_modules: ClassVar[list[str]] = ["unet"]
    text_encoder = None  # which diffusers' LoRA loader asks for

    def __init__(
        self,
        image_encoder: ModelMixin,
        unet: UNet2DConditionModel,
        vae: ModelMixin,
        scheduler: SchedulerMixin,
        view_transformer: ModelMixin | None = None,
        pixel_restorer: ModelMixin | None = None,
        default_num_inference_steps: int | None = None,
        default_guidance_scale: float | None = None,
    ) -> None:
        super().__init__()
        check_components(image_encoder, view_transformer, unet, vae, scheduler)
        self.register_modules(
            image_encoder=image_encoder,
            unet=unet,
            vae=vae,
            scheduler=scheduler,
            view_transformer=view_transformer,
            pixel_restorer=pixel_restorer,
        )
        self.register_to_config(
            default_num_inference_steps=default_num_inference_steps, default_guidance_scale=default_guidance_scale
        )
        self.image_processor = VaeImageProcessor()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load from a folder or a Hub id; see `DiffusionPipeline.from_pretrained`. Only safetensors are read.

        Raises:
            ValueError: the weights are a pickle, or damaged.
        """
        refuse_pickle(kwargs)
        try:
            return super().from_pretrained(str(pretrained_model_name_or_path), use_safetensors=True, **kwargs)
        except OSError as error:
            if "Unable to load weights" in str(error):
                raise ValueError(f"Damaged weights, which must be fetched or saved again: {error}") from error
            if "safetensors" in str(error):
                raise ValueError(
                    f"{pretrained_model_name_or_path} lacks safetensors weights, and a pickle is refused: convert it "
                    "first."
                ) from error
            raise

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save all components; see `DiffusionPipeline.save_pretrained`.

        Raises:
            ValueError: the UNet carries a live LoRA adapter, whose wrapped layers would make a corrupt checkpoint.
        """
        if any(name.endswith("base_layer") for name, _ in self.unet.named_modules()):
            raise ValueError(
                "The UNet carries a live LoRA adapter, which a saved pipeline cannot hold: fuse it first, our own with "
                "`nvb_diffusers.models.unet.fuse_adapter`, another with `pipe.fuse_lora(components=['unet'])` and "
                "`pipe.unload_lora_weights()`."
            )
        super().save_pretrained(save_directory, **kwargs)

    def load_lora_weights(self, pretrained_model_name_or_path_or_dict: Any, **kwargs: Any) -> None:
        """Load a further LoRA into the UNet; see `StableDiffusionLoraLoaderMixin.load_lora_weights`.

        Raises:
            ValueError: the weights are a pickle.
        """
        source = pretrained_model_name_or_path_or_dict
        is_file = isinstance(source, str | Path) and Path(source).is_file()
        refuse_pickle(kwargs, source if is_file else kwargs.get("weight_name"))
        super().load_lora_weights(source, use_safetensors=True, **kwargs)

    @classmethod
    def load_lora_into_text_encoder(cls, *args: Any, **kwargs: Any) -> None:
        """Nothing: there is no text encoder."""

    def check_inputs(
        self,
        num_images: int,
        cameras: torch.Tensor | None,
        source_cameras: torch.Tensor | None,
        restore: bool,
        num_inference_steps: int,
        generator: torch.Generator | list[torch.Generator] | None,
        view_batch_size: int | None,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> None:
        """Raise a ValueError for arguments of `__call__` that do not go together; pictures are checked on reading."""
        # A component may have been replaced since the pipeline was made.
        check_components(self.image_encoder, self.view_transformer, self.unet, self.vae, self.scheduler)
        if num_images == 0:
            raise ValueError("The list of images is empty, but at least one is needed.")
        if restore and not (cameras is None and source_cameras is None):
            raise ValueError(
                "`cameras` or `source_cameras` were given, but without a view transformer the input's own view is "
                "restored: leave them out."
            )
        if cameras is not None:
            if cameras.numel() == 0:
                raise ValueError("`cameras` is empty, but at least one view is needed.")
            if cameras.ndim not in (2, 3) or (cameras.ndim == 3 and len(cameras) != num_images):
                raise ValueError(
                    f"`cameras` has shape {tuple(cameras.shape)}, but (V, 25), ({num_images}, V, 25) or a sequence of "
                    "(yaw, pitch) in degrees is accepted."
                )
            check_camera_params(cameras, "cameras")
        if source_cameras is not None:
            if source_cameras.shape != (num_images, 25):
                raise ValueError(
                    f"`source_cameras` has shape {tuple(source_cameras.shape)}, but ({num_images}, 25) is accepted."
                )
            check_camera_params(source_cameras, "source_cameras")
        if num_inference_steps < 1:
            raise ValueError(f"`num_inference_steps` is {num_inference_steps}, but it must be at least 1.")
        if isinstance(generator, list) and len(generator) != num_images:
            raise ValueError(f"{len(generator)} generators were given for {num_images} images, but one each is needed.")
        if view_batch_size is not None and view_batch_size < 1:
            raise ValueError(f"`view_batch_size` is {view_batch_size}, but it must be at least 1.")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"`output_type` is {output_type!r}, but pil, np, pt or latent is accepted.")
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(f"Callbacks cannot be given {unknown}, but only {self._callback_tensor_inputs}.")

    def preprocess_images(self, images: Sequence[ImageInput]) -> torch.Tensor:
        """Pixel values (B, 3, S, S) in [-1, 1] of aligned, square face pictures at the encoder's size.

        Args:
            images: PIL images, paths, arrays (H, W, 3) or tensors (3, H, W), the last two in [0, 1].

        Raises:
            ValueError: a picture is unreadable, not square, too small, of other channels, or holds NaN.
        """
        size = self.image_encoder.config.sample_size
        device, dtype = self._execution_device, self.image_encoder.dtype
        pixel_values = [self.image_processor.preprocess(read_image(image, size)) for image in images]
        return torch.cat([pixels.to(device, dtype) for pixels in pixel_values]).contiguous()  # (B, 3, S, S)

    def encode_images(
        self, pixel_values: torch.Tensor, timesteps: torch.Tensor, view_batch_size: int | None = None
    ) -> torch.Tensor:
        """Features (T, B, C, 8, 8) of pictures (B, 3, S, S) at each of the time steps (T,) (Eq. 1)."""
        num_steps, num_images = len(timesteps), len(pixel_values)
        index = torch.arange(num_steps * num_images)
        features = [
            self.image_encoder(pixel_values[i % num_images], timesteps[i // num_images]).sample
            for i in index.split(view_batch_size or CONDITIONING_BATCH)
        ]
        return torch.cat(features).unflatten(0, (num_steps, num_images))

    def encode_views(
        self,
        pixel_values: torch.Tensor,
        timesteps: torch.Tensor,
        cameras: torch.Tensor | None = None,
        source_cameras: torch.Tensor | None = None,
        view_batch_size: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Conditioning of every view at every time step, which does not depend on the noisy latents.

        The source camera is one for the whole run: the mean of those predicted at the time steps, unless it is given.

        Args:
            pixel_values: (B, 3, S, S) in [-1, 1].
            timesteps: (T,), all different.
            cameras: (B, V, 25); None for one view at the source camera.
            source_cameras: (B, 25); None to predict them.
            view_batch_size: feature maps at a time.

        Returns:
            Features (T, B, V, C, 8, 8), and source cameras (B, 25).
        """
        limit = view_batch_size or CONDITIONING_BATCH
        features = self.encode_images(pixel_values, timesteps, view_batch_size)  # (T, B, C, 8, 8)
        num_steps, num_images = features.shape[:2]
        features = features.flatten(0, 1).to(self.view_transformer.dtype)  # (T*B, C, 8, 8)
        if source_cameras is None:
            predicted = torch.cat([self.view_transformer.predict_camera(part) for part in features.split(limit)])
            source_cameras = average_cameras(predicted.unflatten(0, (num_steps, num_images)))  # (B, 25)
        source_cameras = source_cameras.to(features.device)
        cameras = source_cameras[:, None] if cameras is None else cameras.to(features.device)

        views = []
        for part, part_timesteps, part_sources, part_targets in zip(
            features.split(limit),
            timesteps.repeat_interleave(num_images).split(limit),
            source_cameras.repeat(num_steps, 1).split(limit),
            cameras.repeat(num_steps, 1, 1).split(limit),
            strict=True,
        ):
            source = self.view_transformer.read_source(part, part_timesteps, part_sources)
            volume = self.view_transformer.build_volume(source)  # (n, C, Z, Y, X)
            targets = part_targets.split(max(1, limit // len(volume)), dim=1)
            # Contiguous, so that rounding does not depend on the number of views.
            projected = [self.view_transformer.project(volume, source, some.contiguous()) for some in targets]
            views.append(torch.cat(projected, dim=1))
        return torch.cat(views).unflatten(0, (num_steps, num_images)), source_cameras  # (T, B, V, C, 8, 8)

    def prepare_latents(
        self,
        num_images: int,
        num_views: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        share_noise: bool,
    ) -> torch.Tensor:
        """Initial latents (B, V, C, h, w), scaled for the scheduler, whose time steps are set.

        Args:
            num_images: B.
            num_views: V.
            generator: one, or one for each image.
            latents: given instead of drawn, (B, V, C, h, w) or (B, 1, C, h, w), unscaled.
            share_noise: whether all views of an image begin with the same noise.
        """
        device, dtype = self._execution_device, self.unet.dtype
        side = self.unet.config.sample_size
        one_view = (num_images, 1, self.unet.config.in_channels, side, side)
        all_views = (num_images, num_views, *one_view[2:])
        if latents is None:
            latents = randn_tensor(one_view if share_noise else all_views, generator, device, dtype)
        elif latents.shape not in (one_view, all_views):
            raise ValueError(f"`latents` has shape {tuple(latents.shape)}, but {all_views} or {one_view} is accepted.")
        return latents.to(device, dtype).expand(all_views) * self.scheduler.init_noise_sigma

    def decode_latents(self, latents: torch.Tensor, view_batch_size: int | None = None) -> torch.Tensor:
        """Pictures (N, 3, S, S) in about [-1, 1] of latents (N, C, h, w)."""
        shift = self.vae.config.get("shift_factor") or 0.0
        latents = latents / self.vae.config.scaling_factor + shift
        parts = latents.to(self.vae.dtype).split(view_batch_size or len(latents))
        return torch.cat([self.vae.decode(part, return_dict=False)[0] for part in parts])

    @property
    def guidance_scale(self) -> float:
        """Guidance scale of the running call."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Denoising steps of the running call."""
        return self._num_timesteps

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | Sequence[ImageInput],
        cameras: Cameras | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        source_cameras: Cameras | None = None,
        share_noise: bool = True,
        view_batch_size: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        num_samples: int = 1,
        fidelity: float | None = None,
        *,
        _restore: bool = False,
    ) -> NVBFacePipelineOutput | tuple[Any, ...]:
        """Make the views of one or several faces.

        Args:
            image: an aligned, square face crop of any quality, or a list of B: PIL images, paths, arrays (H, W, 3) or
                tensors (3, H, W) in [0, 1]. It is resized to what the encoder takes.
            cameras: (V, 25) for all images, (B, V, 25), or a sequence of (yaw, pitch) in degrees; None for the input's
                own view at its predicted camera, or restored where there is no view transformer.
            num_inference_steps: denoising steps; None for what suits the checkpoint, or 50.
            guidance_scale: above 1, moves away from what the UNet predicts without the photo, at twice the cost; None
                for what suits the checkpoint, or 1.
            eta: 0 to 1, noise added by DDIM at each step.
            generator: one, or one for each image, for results that can be repeated.
            latents: (B, V, C, h, w) or (B, 1, C, h, w) Gaussian noise to begin with.
            source_cameras: (B, 25), the cameras of the inputs where they are known; predicted otherwise.
            share_noise: whether all views of an image begin with the same noise, which makes them more alike.
            view_batch_size: views at a time in the UNet and the decoder, and feature maps at a time before; bounds the
                memory. None for all views at once.
            output_type: pil, np, pt or latent.
            return_dict: whether to return a `NVBFacePipelineOutput` rather than a tuple.
            callback_on_step_end: called after each step with the pipeline, the step, the time step and the tensors
                named in `callback_on_step_end_tensor_inputs`; "latents" in what it returns replaces them.
            callback_on_step_end_tensor_inputs: any of latents (B*V, C, h, w) and encoder_hidden_states (B*V, L, C).
            num_samples: K, how often every view is made, each time from other noise, to see what is invented. They
                share the conditioning. Without noise from `eta`, the first is what a call without this would give.
            fidelity: of a restoration, 0 to 1: what is seen of the pixel restorer's picture, which is true to the photo
                and soft, over the UNet's, which is sharp and partly invented. None for 1 where there is a pixel
                restorer, and for 0 elsewhere. At 1 the UNet does not run, so there are no steps to call back after,
                and samples are all alike. Latents are always the UNet's.

        Raises:
            ValueError: an input is not as described.
        """
        # 1. Inputs
        images = image_list(image)
        num_images = len(images)
        targets = None if cameras is None else camera_tensor(cameras, "cameras")  # (V, 25) or (B, V, 25)
        sources = None if source_cameras is None else camera_tensor(source_cameras, "source_cameras")  # (B, 25)
        restore = _restore or self.view_transformer is None
        if num_inference_steps is None:
            num_inference_steps = self.config.default_num_inference_steps or NUM_INFERENCE_STEPS
        if guidance_scale is None:
            guidance_scale = self.config.default_guidance_scale or 1.0
        self.check_inputs(
            num_images,
            targets,
            sources,
            restore,
            num_inference_steps,
            generator,
            view_batch_size,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        if num_samples < 1 or (num_samples > 1 and latents is not None):
            raise ValueError(
                f"`num_samples` is {num_samples}, but it must be at least 1, and exactly 1 where `latents` are given."
            )
        fidelity = self._check_fidelity(fidelity, restore, output_type)
        pixel_values = self.preprocess_images(images)  # (B, 3, S, S)
        num_views = 1 if targets is None else targets.shape[-2]
        grid, one = (num_images, num_samples, num_views), images[0] is image
        if fidelity == 1:  # nothing of what the UNet makes would be seen
            faithful = self._restore_pixels(pixel_values).repeat_interleave(num_samples, dim=0)
            return self._output(*self._postprocess(faithful, grid, output_type), None, one, return_dict)

        # 2. Time steps and latents
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        timesteps = self.scheduler.timesteps  # as many as UNet passes; second-order schedulers visit one twice
        noise = [
            self.prepare_latents(num_images, num_views, generator, latents, share_noise) for _ in range(num_samples)
        ]
        latents = torch.stack(noise, dim=1).flatten(0, 2)  # (B*K*V, C, h, w)

        # 3. Conditioning, before the UNet first runs: one volume for each image and step, however many the views
        unique, position = torch.unique(timesteps, return_inverse=True)  # (T,), and where in it each time step is
        if restore:
            features = self.encode_images(pixel_values, unique, view_batch_size)[:, :, None]  # (T, B, 1, C, 8, 8)
        else:
            targets = None if targets is None else targets.expand(num_images, -1, -1)  # (B, V, 25)
            features, sources = self.encode_views(pixel_values, unique, targets, sources, view_batch_size)
        conditioning = features.flatten(4).mT.to(self.unet.dtype)  # (T, B, V, L, C)

        # 4. Denoising
        self._guidance_scale, self._num_timesteps = guidance_scale, len(timesteps)
        extra_step_kwargs = self._extra_step_kwargs(generator, eta, num_samples * num_views)
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for i, (t, step) in enumerate(zip(timesteps, position.tolist(), strict=True)):
                encoder_hidden_states = conditioning[step].repeat(1, num_samples, 1, 1).flatten(0, 1)  # (B*K*V, L, C)
                latent_input = self.scheduler.scale_model_input(latents, t)  # (B*K*V, C, h, w)
                model_pred = self._predict(latent_input, t, encoder_hidden_states, view_batch_size)
                latents = self.scheduler.step(model_pred, t, latents, **extra_step_kwargs, return_dict=False)[0]
                if callback_on_step_end is not None:
                    tensors = {"latents": latents, "encoder_hidden_states": encoder_hidden_states}
                    callback_kwargs = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    latents = callback_on_step_end(self, i, t, callback_kwargs).pop("latents", latents)
                progress_bar.update()

        # 5. Decoding
        if output_type == "latent":
            return self._output(latents.unflatten(0, grid), None, sources, one, return_dict)
        pictures = self.decode_latents(latents, view_batch_size)  # (B*K*V, 3, S, S)
        if fidelity:
            faithful = self._restore_pixels(pixel_values).to(pictures).repeat_interleave(num_samples, dim=0)  # V is 1
            pictures = pictures.clamp(-1, 1).lerp(faithful, fidelity)
        samples, deviation = self._postprocess(pictures, grid, output_type)
        return self._output(samples, deviation, sources, one, return_dict)

    def restore(
        self, image: ImageInput | Sequence[ImageInput], **kwargs: Any
    ) -> NVBFacePipelineOutput | tuple[Any, ...]:
        """The same view, restored: by pixel restorer, step 1 or both (`fidelity`). V is 1, `source_cameras` is None.

        Args:
            image: as in a call.
            kwargs: of a call, but for the cameras.
        """
        return self(image, **kwargs, _restore=True)

    def _restore_pixels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the pixel restorer makes of pictures (B, 3, S, S), in [-1, 1]."""
        pixels = pixel_values.to(self.pixel_restorer.dtype)
        seen, mirrored = (self.pixel_restorer(some).sample for some in (pixels, pixels.flip(-1)))
        return ((seen + mirrored.flip(-1)) / 2).clamp(-1, 1)  # errs less than either, as a mirrored face is a face

    def _postprocess(
        self, pictures: torch.Tensor, grid: tuple[int, int, int], output_type: str
    ) -> tuple[Any, torch.Tensor | None]:
        """Samples (B, K, V, ...) of pictures (B*K*V, 3, S, S), lists for PIL images; their deviation (B, V, S, S)."""
        deviation = None
        if grid[1] > 1:
            colors = (pictures.float().cpu() / 2 + 0.5).clamp(0, 1).unflatten(0, grid)
            deviation = colors.std(dim=1).mean(dim=2)  # (B, V, S, S)
        shown: Any = self.image_processor.postprocess(pictures, output_type=output_type)
        samples = _nested(shown, grid) if output_type == "pil" else shown.reshape(*grid, *shown.shape[1:])
        return samples, deviation

    def _output(
        self, samples: Any, deviation: torch.Tensor | None, sources: torch.Tensor | None, one: bool, return_dict: bool
    ) -> NVBFacePipelineOutput | tuple[Any, ...]:
        """Samples (B, K, V, ...) as a call gives them back, of one image or of a list, with all models put away."""
        self.maybe_free_model_hooks()
        views = [of_image[0] for of_image in samples] if isinstance(samples, list) else samples[:, 0]
        output: tuple[Any, ...] = (views[0] if one else views, sources)
        if len(samples[0]) > 1:
            output += (samples[0] if one else samples, deviation[0] if one and deviation is not None else deviation)
        return NVBFacePipelineOutput(*output) if return_dict else output

    def _check_fidelity(self, fidelity: float | None, restore: bool, output_type: str) -> float:
        """The fidelity meant; a ValueError where it is out of range, or asked of what cannot have it."""
        possible = restore and self.pixel_restorer is not None and output_type != "latent"
        if fidelity is None:
            return FIDELITY if possible else 0.0
        if not 0 <= fidelity <= 1:
            raise ValueError(f"`fidelity` is {fidelity}, but 0 to 1 is accepted.")
        if fidelity > 0 and not possible:
            raise ValueError(
                f"`fidelity` is {fidelity}, but only pictures that a pipeline with a pixel restorer restores have one: "
                "leave it out."
            )
        return float(fidelity)

    def _predict(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        view_batch_size: int | None,
    ) -> torch.Tensor:
        """The UNet's prediction for latents (N, C, h, w), guided away from that for features of zeros: no photo."""
        size = view_batch_size or len(latents)
        predictions = []
        for part, states in zip(latents.split(size), encoder_hidden_states.split(size), strict=True):
            if self.guidance_scale <= 1:
                prediction = self.unet(part, timestep, states, return_dict=False)[0]
            else:
                both = torch.cat([torch.zeros_like(states), states])
                both = self.unet(part.repeat(2, 1, 1, 1), timestep, both, return_dict=False)[0]
                unconditional, conditional = both.chunk(2)
                prediction = unconditional + self.guidance_scale * (conditional - unconditional)
            predictions.append(prediction)
        return torch.cat(predictions)

    def _extra_step_kwargs(
        self, generator: torch.Generator | list[torch.Generator] | None, eta: float, num_views: int
    ) -> dict[str, Any]:
        """What this scheduler's step takes of `eta` and `generator`, of which it needs one for each view."""
        if isinstance(generator, list):
            generator = [of_image for of_image in generator for _ in range(num_views)]
        accepted = inspect.signature(self.scheduler.step).parameters
        return {name: value for name, value in {"eta": eta, "generator": generator}.items() if name in accepted}


def _nested(pictures: list[Image.Image], grid: tuple[int, int, int]) -> list[list[list[Image.Image]]]:
    """Pictures as lists by image, sample and view."""
    _, num_samples, num_views = grid
    of_sample = [pictures[i : i + num_views] for i in range(0, len(pictures), num_views)]
    return [of_sample[i : i + num_samples] for i in range(0, len(of_sample), num_samples)]
