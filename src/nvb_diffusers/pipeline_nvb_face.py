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

from .camera import average_cameras, camera_from_angles, check_camera_params

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
SMALLEST_SIDE = 8  # pixels; below it a picture holds no face
CONDITIONING_BATCH = 32  # feature maps at a time before the UNet loop, where `view_batch_size` does not say

ImageInput = Image.Image | str | Path | np.ndarray | torch.Tensor
Cameras = torch.Tensor | np.ndarray | Sequence[tuple[float, float]]


@dataclass
class NVBFacePipelineOutput(BaseOutput):
    """Output of `NVBFacePipeline`.

    Args:
        images: the V views of the input as PIL images; for a list of inputs a list of such lists. With `output_type`
            "np" (V, H, W, 3) and "pt" (V, 3, H, W) in [0, 1], with "latent" (V, C, h, w); with B in front for a list.
        source_cameras: (B, 25), the camera of each input, as predicted or as given; None where no camera was needed.
    """

    images: list[Image.Image] | list[list[Image.Image]] | np.ndarray | torch.Tensor
    source_cameras: torch.Tensor | None


class NVBFacePipeline(DiffusionPipeline, StableDiffusionLoraLoaderMixin):
    """Pipeline of NVB-Face (arXiv 2603.01328).

    Args:
        image_encoder: reads the degraded photo at a time step (`TimeAwareImageEncoder`, Eq. 1).
        unet: denoises the latents of each view, its cross-attention reads the view's features.
        vae: decodes latents to pictures: AutoencoderKL, AutoencoderDC or AutoencoderTiny.
        scheduler: any of diffusers' schedulers for epsilon, v or sample prediction.
        view_transformer: lifts features into a volume and projects it to cameras (`ViewTransformer3D`, Eq. 3-6); without
            it the pipeline restores the input's own view (step 1).

    Raises:
        ValueError: a component's width does not fit the UNet's cross-attention, or the scheduler's prediction type is
            none of epsilon, v_prediction and sample.
    """

    model_cpu_offload_seq = "image_encoder->view_transformer->unet->vae"
    _optional_components: ClassVar[list[str]] = ["view_transformer"]
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
    ) -> None:
        super().__init__()
        _check_components(image_encoder, view_transformer, unet, scheduler)
        self.register_modules(
            image_encoder=image_encoder, unet=unet, vae=vae, scheduler=scheduler, view_transformer=view_transformer
        )
        widths = vae.config.get("block_out_channels") or vae.config.get("encoder_block_out_channels")
        self.vae_scale_factor = 2 ** (len(widths) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor, do_convert_rgb=True)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load from a folder or a Hub id; see `DiffusionPipeline.from_pretrained`. Only safetensors are read.

        Raises:
            ValueError: the weights are a pickle.
        """
        if kwargs.pop("use_safetensors", True) is False:
            raise ValueError("`use_safetensors=False` was given, but only safetensors weights are loaded, never a pickle.")
        try:
            return super().from_pretrained(pretrained_model_name_or_path, use_safetensors=True, **kwargs)
        except OSError as error:
            if "safetensors" not in str(error):
                raise
            raise ValueError(
                f"{pretrained_model_name_or_path} lacks safetensors weights, and a pickle is refused: convert it first."
            ) from error

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save all components; see `DiffusionPipeline.save_pretrained`.

        Raises:
            ValueError: the UNet carries a live LoRA adapter, whose wrapped layers would make a corrupt checkpoint.
        """
        if any(name.endswith("base_layer") for name, _ in self.unet.named_modules()):
            raise ValueError(
                "The UNet carries a live LoRA adapter, which a saved pipeline cannot hold: fuse it first "
                "(`nvb_diffusers.unet.fuse_adapter`, or `pipe.fuse_lora()` and `pipe.unload_lora_weights()`)."
            )
        super().save_pretrained(save_directory, **kwargs)

    def load_lora_weights(self, pretrained_model_name_or_path_or_dict: Any, **kwargs: Any) -> None:
        """Load a further LoRA into the UNet, from safetensors; see `StableDiffusionLoraLoaderMixin.load_lora_weights`."""
        super().load_lora_weights(pretrained_model_name_or_path_or_dict, **{"use_safetensors": True, **kwargs})

    @classmethod
    def load_lora_into_text_encoder(cls, *args: Any, **kwargs: Any) -> None:
        """Nothing: there is no text encoder."""

    def check_inputs(
        self,
        cameras: torch.Tensor | None,
        source_cameras: torch.Tensor | None,
        num_images: int,
        num_inference_steps: int,
        generator: torch.Generator | list[torch.Generator] | None,
        view_batch_size: int | None,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> None:
        """Raise a ValueError for arguments of `__call__` that do not go together; pictures are checked on reading."""
        if num_inference_steps < 1:
            raise ValueError(f"`num_inference_steps` is {num_inference_steps}, but it must be at least 1.")
        if cameras is not None:
            if self.view_transformer is None:
                raise ValueError("`cameras` were given, but this pipeline has no view transformer: it only restores.")
            if cameras.ndim not in (2, 3) or (cameras.ndim == 3 and cameras.shape[0] != num_images):
                raise ValueError(
                    f"`cameras` has shape {tuple(cameras.shape)}, but (V, 25) or ({num_images}, V, 25) is accepted."
                )
            if cameras.shape[-2] == 0:
                raise ValueError("`cameras` is empty, but at least one view is needed.")
            check_camera_params(cameras, "cameras")
        if source_cameras is not None:
            if source_cameras.shape != (num_images, 25):
                raise ValueError(
                    f"`source_cameras` has shape {tuple(source_cameras.shape)}, but ({num_images}, 25) is accepted."
                )
            check_camera_params(source_cameras, "source_cameras")
        if isinstance(generator, list) and len(generator) != num_images:
            raise ValueError(f"{len(generator)} generators were given for {num_images} images: give one for each image.")
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
        pixel_values = []
        for image in images:
            image = _read_image(image)
            width, height = image.size if isinstance(image, Image.Image) else (image.shape[-1], image.shape[-2])
            if width != height or width < SMALLEST_SIDE:
                raise ValueError(
                    f"An image is {width}x{height}, but a square face crop of at least {SMALLEST_SIDE} pixels is needed: "
                    "`nvb_diffusers.face_crop.crop_face` makes one from any photo."
                )
            if isinstance(image, Image.Image) or width == size:
                pixel_values.append(self.image_processor.preprocess(image, height=size, width=size))
            else:
                resized = torch.nn.functional.interpolate(image, (size, size), mode="bicubic", antialias=True)
                pixel_values.append(self.image_processor.preprocess(resized.clamp(0, 1)))
        return torch.cat(pixel_values).to(self._execution_device, self.image_encoder.dtype)  # (B, 3, S, S)

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
        num_steps, num_images = len(timesteps), len(pixel_values)
        limit = view_batch_size or CONDITIONING_BATCH
        features = self.encode_images(pixel_values, timesteps, view_batch_size)  # (T, B, C, 8, 8)
        if source_cameras is None:
            parts = features.flatten(0, 1).split(limit)
            predicted = torch.cat([self.view_transformer.predict_camera(part) for part in parts])  # (T*B, 25)
            source_cameras = average_cameras(predicted.unflatten(0, (num_steps, num_images)))  # (B, 25)
        cameras = source_cameras[:, None] if cameras is None else cameras
        source_cameras = source_cameras.to(features.device)
        cameras = cameras.to(features.device)

        views = []
        steps_at_once = max(1, limit // num_images)
        for part, part_timesteps in zip(features.split(steps_at_once), timesteps.split(steps_at_once), strict=True):
            count = len(part)
            volume = self.view_transformer.build_volume(
                part.flatten(0, 1),
                part_timesteps.repeat_interleave(num_images),
                source_cameras.repeat(count, 1),
            )  # (t*B, C, Z, Y, X)
            views_at_once = max(1, limit // len(volume))
            projected = [
                self.view_transformer.project(volume, targets.repeat(count, 1, 1))
                for targets in cameras.split(views_at_once, dim=1)
            ]
            views.append(torch.cat(projected, dim=1).unflatten(0, (count, num_images)))  # (t, B, V, C, 8, 8)
        return torch.cat(views), source_cameras

    def encode_images(
        self, pixel_values: torch.Tensor, timesteps: torch.Tensor, view_batch_size: int | None = None
    ) -> torch.Tensor:
        """Features (T, B, C, 8, 8) of pictures (B, 3, S, S) at each of the time steps (T,) (Eq. 1)."""
        num_images = len(pixel_values)
        steps_at_once = max(1, (view_batch_size or CONDITIONING_BATCH) // num_images)
        features = []
        for part in timesteps.split(steps_at_once):
            repeated = pixel_values.repeat(len(part), 1, 1, 1)  # (t*B, 3, S, S)
            encoded = self.image_encoder(repeated, part.repeat_interleave(num_images)).sample
            features.append(encoded.unflatten(0, (len(part), num_images)))
        return torch.cat(features)

    def prepare_latents(
        self,
        num_images: int,
        num_views: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        share_noise: bool,
    ) -> torch.Tensor:
        """Initial latents (B, V, C, h, w), scaled for the scheduler.

        Args:
            num_images: B.
            num_views: V.
            generator: one, or one for each image.
            latents: given instead of drawn, (B, V, C, h, w) or (B, 1, C, h, w), unscaled.
            share_noise: whether all views of an image begin with the same noise.
        """
        side = self.unet.config.sample_size
        shape = (num_images, num_views, self.unet.config.in_channels, side, side)
        if latents is None:
            drawn = (num_images, 1 if share_noise else num_views, *shape[2:])
            latents = randn_tensor(drawn, generator=generator, device=self._execution_device, dtype=self.unet.dtype)
        elif latents.ndim != 5 or latents.shape[1] not in (1, num_views) or (len(latents), *latents.shape[2:]) != (
            num_images,
            *shape[2:],
        ):
            raise ValueError(f"`latents` has shape {tuple(latents.shape)}, but {shape} is accepted.")
        latents = latents.to(self._execution_device, self.unet.dtype).expand(shape)
        return latents * self.scheduler.init_noise_sigma

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
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        source_cameras: torch.Tensor | None = None,
        share_noise: bool = True,
        view_batch_size: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["NVBFacePipeline", int, Any, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> NVBFacePipelineOutput | tuple[Any, torch.Tensor | None]:
        """Make the views of one or several faces.

        Args:
            image: an aligned, square face crop of any quality, or a list of B: PIL images, paths, arrays (H, W, 3) or
                tensors (3, H, W) in [0, 1]. It is resized to what the encoder takes.
            cameras: (V, 25) for all images, (B, V, 25), or a sequence of (yaw, pitch) in degrees; None for the input's
                own view at its predicted camera.
            num_inference_steps: denoising steps.
            guidance_scale: above 1, moves away from what the UNet predicts without the photo, at twice the cost.
            eta: 0 to 1, noise added by DDIM at each step.
            generator: one, or one for each image, for results that can be repeated.
            latents: (B, V, C, h, w) or (B, 1, C, h, w) Gaussian noise to begin with.
            source_cameras: (B, 25), the cameras of the inputs where they are known; predicted otherwise.
            share_noise: whether all views of an image begin with the same noise, which makes them more alike.
            view_batch_size: views at a time in the UNet and the decoder, and feature maps at a time before; bounds the
                memory. None for all at once.
            output_type: pil, np, pt or latent.
            return_dict: whether to return a `NVBFacePipelineOutput` rather than a tuple.
            callback_on_step_end: called after each step with the pipeline, the step, the time step and the tensors named
                in `callback_on_step_end_tensor_inputs`; what it returns replaces them.
            callback_on_step_end_tensor_inputs: any of latents (B*V, C, h, w) and encoder_hidden_states (B*V, L, C).

        Raises:
            ValueError: an input is not as described.
        """
        if self.view_transformer is None and cameras is None:
            return self.restore(
                image,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                eta=eta,
                generator=generator,
                latents=latents,
                view_batch_size=view_batch_size,
                output_type=output_type,
                return_dict=return_dict,
                callback_on_step_end=callback_on_step_end,
                callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            )
        # 1. Inputs
        images = [image] if _is_single(image) else list(image)
        targets = None if cameras is None else _camera_tensor(cameras)  # (V, 25) or (B, V, 25)
        self.check_inputs(
            targets,
            source_cameras,
            len(images),
            num_inference_steps,
            generator,
            view_batch_size,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        pixel_values = self.preprocess_images(images)  # (B, 3, S, S)
        if targets is not None:
            targets = targets.expand(len(images), -1, -1)  # (B, V, 25)

        # 2. Conditioning of all time steps: one volume for each image and step, whatever the number of views
        timesteps, unique, position = self._prepare_timesteps(num_inference_steps)
        features, source_cameras = self.encode_views(pixel_values, unique, targets, source_cameras, view_batch_size)

        # 3. Denoising and decoding
        output = self._generate(
            features,
            timesteps,
            position,
            guidance_scale,
            eta,
            generator,
            latents,
            share_noise,
            view_batch_size,
            output_type,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        output = output[0] if _is_single(image) else output
        self.maybe_free_model_hooks()
        return NVBFacePipelineOutput(output, source_cameras) if return_dict else (output, source_cameras)

    @torch.no_grad()
    def restore(
        self,
        image: ImageInput | Sequence[ImageInput],
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        view_batch_size: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["NVBFacePipeline", int, Any, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> NVBFacePipelineOutput | tuple[Any, None]:
        """Step 1 alone: the same view, restored, without the view transformer. V is 1; arguments are those of a call."""
        images = [image] if _is_single(image) else list(image)
        self.check_inputs(
            None,
            None,
            len(images),
            num_inference_steps,
            generator,
            view_batch_size,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        pixel_values = self.preprocess_images(images)  # (B, 3, S, S)
        timesteps, unique, position = self._prepare_timesteps(num_inference_steps)
        features = self.encode_images(pixel_values, unique, view_batch_size)[:, :, None]  # (T, B, 1, C, 8, 8)
        output = self._generate(
            features,
            timesteps,
            position,
            guidance_scale,
            eta,
            generator,
            latents,
            True,
            view_batch_size,
            output_type,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        output = output[0] if _is_single(image) else output
        self.maybe_free_model_hooks()
        return NVBFacePipelineOutput(output, None) if return_dict else (output, None)

    def _prepare_timesteps(self, num_inference_steps: int) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """The scheduler's time steps (T'), those that differ (T,), and which of the latter each of the former is.

        Second-order schedulers visit a time step twice; its conditioning is computed once.
        """
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        timesteps = self.scheduler.timesteps
        unique, position = torch.unique(timesteps, return_inverse=True)
        return timesteps, unique, position.tolist()

    def _generate(
        self,
        features: torch.Tensor,
        timesteps: torch.Tensor,
        position: list[int],
        guidance_scale: float,
        eta: float,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        share_noise: bool,
        view_batch_size: int | None,
        output_type: str,
        callback_on_step_end: Callable[["NVBFacePipeline", int, Any, dict[str, Any]], dict[str, Any]] | None,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> Any:
        """Denoise and decode the views (B, V) with the features (T, B, V, C, 8, 8)."""
        num_images, num_views = features.shape[1:3]
        conditioning = features.flatten(1, 2).flatten(3).mT.to(self.unet.dtype)  # (T, B*V, L, C)
        null = None
        if guidance_scale > 1:
            null_features = self.image_encoder.null_features(1).to(conditioning.device, conditioning.dtype)
            null = null_features.flatten(2).mT  # (1, L, C)
        latents = self.prepare_latents(num_images, num_views, generator, latents, share_noise).flatten(0, 1)
        step_generator = generator
        if isinstance(generator, list):  # one for each image, the scheduler needs one for each view
            step_generator = [g for g in generator for _ in range(num_views)]
        extra_step_kwargs = self._extra_step_kwargs(step_generator, eta)
        self._guidance_scale, self._num_timesteps = guidance_scale, len(timesteps)

        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for i, t in enumerate(timesteps):
                encoder_hidden_states = conditioning[position[i]]  # (B*V, L, C)
                latent_input = self.scheduler.scale_model_input(latents, t)  # (B*V, C, h, w)
                size = view_batch_size or len(latents)
                predictions = [
                    self._predict(views, t, states, null, guidance_scale)
                    for views, states in zip(latent_input.split(size), encoder_hidden_states.split(size), strict=True)
                ]
                model_pred = torch.cat(predictions)
                latents = self.scheduler.step(model_pred, t, latents, **extra_step_kwargs, return_dict=False)[0]
                latents = latents.to(self.unet.dtype)
                if callback_on_step_end is not None:
                    callback_kwargs = {}
                    for name in callback_on_step_end_tensor_inputs:
                        callback_kwargs[name] = locals()[name]
                    callback_outputs = callback_on_step_end(self, i, t, callback_kwargs)
                    latents = callback_outputs.pop("latents", latents)
                progress_bar.update()

        if output_type == "latent":
            return latents.unflatten(0, (num_images, num_views))
        pixel_values = self.decode_latents(latents, view_batch_size)  # (B*V, 3, S, S)
        pictures = self.image_processor.postprocess(pixel_values, output_type=output_type)
        if output_type == "pil":
            return [pictures[i : i + num_views] for i in range(0, len(pictures), num_views)]
        return pictures.reshape(num_images, num_views, *pictures.shape[1:])

    def _predict(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        null: torch.Tensor | None,
        guidance_scale: float,
    ) -> torch.Tensor:
        """The UNet's prediction for latents (N, C, h, w); with a null condition (1, L, C), guided away from it."""
        if null is None:
            return self.unet(latents, timestep, encoder_hidden_states, return_dict=False)[0]
        both = torch.cat([null.expand_as(encoder_hidden_states), encoder_hidden_states])
        unconditional, conditional = self.unet(latents.repeat(2, 1, 1, 1), timestep, both, return_dict=False)[0].chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    def _extra_step_kwargs(
        self, generator: torch.Generator | list[torch.Generator] | None, eta: float
    ) -> dict[str, Any]:
        """What this scheduler's step takes of `eta` and `generator`."""
        accepted = inspect.signature(self.scheduler.step).parameters
        return {name: value for name, value in {"eta": eta, "generator": generator}.items() if name in accepted}


def _check_components(
    image_encoder: ModelMixin, view_transformer: ModelMixin | None, unet: UNet2DConditionModel, scheduler: SchedulerMixin
) -> None:
    """Raise a ValueError where widths do not fit, or where the scheduler's prediction type is unknown."""
    width = unet.config.cross_attention_dim
    if image_encoder.config.out_channels != width:
        raise ValueError(
            f"The image encoder's features are {image_encoder.config.out_channels} wide, but the UNet's cross-attention "
            f"reads {width}: `nvb_diffusers.unet.convert_unet` changes the UNet."
        )
    if view_transformer is not None and view_transformer.config.in_channels != width:
        raise ValueError(
            f"The view transformer's features are {view_transformer.config.in_channels} wide, but the UNet's "
            f"cross-attention reads {width}."
        )
    prediction_type = scheduler.config.get("prediction_type")
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"The scheduler predicts {prediction_type!r}, but one of {PREDICTION_TYPES} is accepted.")


def _is_single(image: ImageInput | Sequence[ImageInput]) -> bool:
    return isinstance(image, Image.Image | str | Path | np.ndarray | torch.Tensor) and getattr(image, "ndim", 3) == 3


def _read_image(image: ImageInput) -> Image.Image | torch.Tensor:
    """A PIL image in RGB, or a tensor (1, 3, H, W) in [0, 1]."""
    if isinstance(image, str | Path):
        try:
            image = Image.open(image)
            image.load()
        except (OSError, SyntaxError) as error:
            raise ValueError(f"Cannot read an image: {error}.") from None
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if not isinstance(image, np.ndarray | torch.Tensor):
        raise ValueError(f"An image is a {type(image).__name__}, but a PIL image, a path, an array or a tensor is accepted.")
    tensor = torch.from_numpy(image).movedim(-1, 0) if isinstance(image, np.ndarray) else image
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ValueError(
            f"An image has shape {tuple(image.shape)}, but an array (H, W, 3) or a tensor (3, H, W) is accepted."
        )
    if not tensor.is_floating_point() or not torch.isfinite(tensor).all() or tensor.min() < 0 or tensor.max() > 1:
        raise ValueError("An image's pixels are not all finite floating-point numbers from 0 to 1.")
    return tensor[None].float()


def _camera_tensor(cameras: Cameras) -> torch.Tensor:
    """Labels (..., 25) as given, or those of (yaw, pitch) pairs in degrees."""
    if isinstance(cameras, torch.Tensor | np.ndarray):
        tensor = torch.as_tensor(cameras).float()
        return tensor if tensor.ndim > 1 else tensor[None]
    angles = list(cameras)
    if not angles or any(not isinstance(pair, Sequence) or len(pair) != 2 for pair in angles):
        raise ValueError("`cameras` must be a tensor (V, 25) or (B, V, 25), or a sequence of (yaw, pitch) in degrees.")
    yaw_deg, pitch_deg = torch.tensor(angles, dtype=torch.float32).unbind(-1)
    return camera_from_angles(yaw_deg, pitch_deg)
