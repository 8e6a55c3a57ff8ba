"""NVBFacePipeline: one degraded face photo in, views of that face at any camera out, in one diffusion run."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, overload

import torch
from diffusers import ModelMixin, SchedulerMixin, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor

from .conditioning import Conditioning, encode_images, encode_views, find_cameras
from .denoising import call_back, extra_step_kwargs, guided_prediction
from .pipeline_files import SafetensorsPipeline
from .pipeline_inputs import (
    Background,
    Cameras,
    ImageInput,
    check_background,
    check_components,
    check_denoising,
    check_guidance,
    check_positive,
    count_views,
    image_list,
    read_cameras,
    read_defaults,
    read_fidelity,
    read_image,
    read_names,
)
from .pipeline_output import NVBFacePipelineOutput, NVBFaceRestorationOutput, at_size, by_image, fuse_views

NUM_INFERENCE_STEPS = 50  # the paper's, where the checkpoint has no better
STATES = "encoder_hidden_states"  # what callbacks know the features as

Images = ImageInput | Sequence[ImageInput]
Generators = torch.Generator | list[torch.Generator] | None
Callback = Callable[["NVBFacePipeline", int, Any, dict[str, Any]], dict[str, Any] | None]


class NVBFacePipeline(SafetensorsPipeline):
    """Pipeline of NVB-Face (arXiv 2603.01328).

    Args:
        image_encoder: reads the degraded photo at a time step (`TimeAwareImageEncoder`, Eq. 1).
        unet: denoises the latents of each view, its cross-attention reads the view's features.
        vae: decodes latents to images: AutoencoderKL, AutoencoderDC or AutoencoderTiny.
        scheduler: any of diffusers' schedulers for epsilon, v or sample prediction.
        view_transformer: lifts features into a volume and projects it to cameras (`ViewTransformer3D`, Eq. 3-6);
            without it the pipeline can only `restore` (step 1).
        appearance: carries the photo's own pixels to the views, and restores them (`AppearanceModel`, ours); without it
            the pipeline is the paper's system, and restorations are the UNet's alone.
        default_num_inference_steps: denoising steps that suit these weights, for calls that ask for none.
        default_guidance_scale: the same for the guidance scale.

    Raises:
        ValueError: a component is missing or does not fit the others, or the scheduler's prediction type is none of
            epsilon, v_prediction and sample.
    """

    model_cpu_offload_seq = "image_encoder->view_transformer->unet->vae->appearance"
    _optional_components: ClassVar[list[str]] = ["view_transformer", "appearance"]
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", STATES]

    def __init__(
        self,
        image_encoder: ModelMixin,
        unet: UNet2DConditionModel,
        vae: ModelMixin,
        scheduler: SchedulerMixin,
        view_transformer: ModelMixin | None = None,
        appearance: ModelMixin | None = None,
        default_num_inference_steps: int | None = None,
        default_guidance_scale: float | None = None,
    ) -> None:
        super().__init__()
        check_components(image_encoder, unet, vae, scheduler, view_transformer)
        self.register_modules(
            image_encoder=image_encoder,
            unet=unet,
            vae=vae,
            scheduler=scheduler,
            view_transformer=view_transformer,
            appearance=appearance,
        )
        self.register_to_config(**read_defaults(default_num_inference_steps, default_guidance_scale))
        self.image_processor = VaeImageProcessor()

    def _check_components(self, for_views: bool) -> None:
        """Raise a ValueError where the components do not fit: one may have been replaced meanwhile."""
        check_components(self.image_encoder, self.unet, self.vae, self.scheduler, self.view_transformer)
        if for_views and self.view_transformer is None:
            raise ValueError("The pipeline has no view transformer, so it makes no views: it can only `restore`.")

    @property
    def sample_size(self) -> int:
        """Side in pixels of the images that calls make, at which a face crop loses nothing."""
        sized = self.image_encoder if self.appearance is None else self.appearance
        return int(sized.config.sample_size)

    @property
    def _latent_shape(self) -> tuple[int, int, int]:
        side = self.unet.config.sample_size
        return self.unet.config.in_channels, side, side

    @torch.no_grad()
    def encode(
        self,
        image: Images,
        cameras: Cameras | None = None,
        num_inference_steps: int | None = None,
        source_cameras: Cameras | None = None,
        view_batch_size: int | None = None,
    ) -> Conditioning:
        """Do all of a call that does not depend on its noise, once for any number of calls with `conditioning=`.

        Args:
            image: as in a call, and so are the others.
            cameras: of the views; None for one view at the source camera.
            num_inference_steps: denoising steps; None for what suits the checkpoint, or 50.
            source_cameras: (B, 25); None for `predict_cameras`.
            view_batch_size: feature maps at a time.

        Raises:
            ValueError: as a call.
        """
        self._check_components(for_views=True)
        images = image_list(image)
        targets, sources = read_cameras(cameras, source_cameras, len(images))  # (B, V, 25), (B, 25)
        timesteps, features = self._encode_images(images, num_inference_steps, view_batch_size)  # (T,), (T, B, C, 8, 8)
        photos = self.preprocess_images(images, self.sample_size)  # (B, 3, S, S)
        models = (self.view_transformer, self.appearance)
        sources, surface = find_cameras(*models, features, photos, sources, view_batch_size)
        targets = sources[:, None] if targets is None else targets.to(features.device)
        views = encode_views(self.view_transformer, features, timesteps, targets, sources, view_batch_size)
        layers = None if surface is None else self.appearance.project(surface, targets.expand(len(images), -1, -1))
        return Conditioning(
            encoder_hidden_states=views.flatten(4).mT,  # (T, B, V, L, C)
            timesteps=timesteps,
            num_inference_steps=self._num_steps(num_inference_steps),
            source_cameras=sources,
            surface=surface,
            layers=layers,
            is_batch=images[0] is not image,
        )

    @torch.no_grad()
    def predict_cameras(
        self, image: Images, num_inference_steps: int | None = None, view_batch_size: int | None = None
    ) -> torch.Tensor:
        """Cameras (B, 25) that took the images, in float32, as a call with as many steps predicts them."""
        self._check_components(for_views=True)
        images = image_list(image)
        features = self._encode_images(images, num_inference_steps, view_batch_size)[1]
        photos = self.preprocess_images(images, self.sample_size)
        return find_cameras(self.view_transformer, self.appearance, features, photos, None, view_batch_size)[0]

    def preprocess_images(self, images: Sequence[ImageInput], size: int | None = None) -> torch.Tensor:
        """Pixel values (B, 3, S, S) in [-1, 1] of aligned, square face images.

        Args:
            images: PIL images, paths, arrays (H, W, 3) or tensors (3, H, W), the last two in [0, 1].
            size: S; None for the encoder's.

        Raises:
            ValueError: an image is unreadable, not square, too small, of other channels, or holds NaN.
        """
        size = size or self.image_encoder.config.sample_size
        pixel_values = torch.cat([self.image_processor.preprocess(read_image(image, size)) for image in images])
        return pixel_values.to(self._execution_device, self.image_encoder.dtype).contiguous()  # (B, 3, S, S)

    def _encode_images(
        self, images: Sequence[ImageInput], num_inference_steps: int | None, view_batch_size: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The different time steps (T,) of so many denoising steps, and features (T, B, C, 8, 8) at them (Eq. 1)."""
        check_positive("view_batch_size", view_batch_size)
        timesteps = self._set_timesteps(self._num_steps(num_inference_steps))
        return timesteps, encode_images(self.image_encoder, self.preprocess_images(images), timesteps, view_batch_size)

    def _num_steps(self, num_inference_steps: int | None) -> int:
        """The denoising steps asked for, else those that suit the checkpoint."""
        default = int(self.config.default_num_inference_steps or NUM_INFERENCE_STEPS)
        return default if num_inference_steps is None else num_inference_steps

    def _set_timesteps(self, num_inference_steps: int) -> torch.Tensor:
        """Ready the scheduler; its different time steps (T,), the smallest first, on the CPU."""
        check_positive("num_inference_steps", num_inference_steps)
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        return torch.unique(self.scheduler.timesteps).cpu()

    def decode_latents(self, latents: torch.Tensor, view_batch_size: int | None = None) -> torch.Tensor:
        """Images (N, 3, S, S) in about [-1, 1] of latents (N, C, h, w)."""
        latents = latents / self.vae.config.scaling_factor + (self.vae.config.get("shift_factor") or 0.0)
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

    @property
    def interrupt(self) -> bool:
        """Whether the running call stops after this step, since a callback set `pipe._interrupt`."""
        return self._interrupt

    @overload
    def __call__(
        self,
        image: Images | None = None,
        cameras: Cameras | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        eta: float = 0.0,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        source_cameras: Cameras | None = None,
        conditioning: Conditioning | None = None,
        view_batch_size: int | None = None,
        background: Background = "turn",
        output_type: str = "pil",
        return_dict: Literal[True] = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> NVBFacePipelineOutput: ...

    @overload
    def __call__(self, *args: Any, return_dict: Literal[False], **kwargs: Any) -> tuple[Any, ...]: ...

    @torch.no_grad()  # type: ignore[misc]  # the tuple's overload leaves the other arguments out
    def __call__(
        self,
        image: Images | None = None,
        cameras: Cameras | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        eta: float = 0.0,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        source_cameras: Cameras | None = None,
        conditioning: Conditioning | None = None,
        view_batch_size: int | None = None,
        background: Background = "turn",
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> NVBFacePipelineOutput | tuple[Any, ...]:
        """Make the views of one or several faces.

        Args:
            image: an aligned, square face crop of any quality, or a list of B: PIL images, paths, arrays (H, W, 3) or
                tensors (3, H, W) in [0, 1]. It is resized to what the encoder takes.
            cameras: (V, 25) for all images, (B, V, 25), or a sequence of (yaw, pitch) in degrees; None for the input's
                own view at its predicted camera.
            num_inference_steps: denoising steps; None for what suits the checkpoint, or 50.
            guidance_scale: above 1, moves away from what the UNet predicts without the photo, at twice the cost; None
                for what suits the checkpoint, or 1.
            eta: 0 to 1, noise added by DDIM at each step.
            generator: one, or one for each image, for results that can be repeated.
            latents: (B, V, C, h, w) Gaussian noise to begin with, or (B, 1, C, h, w) for all views, which makes them
                more alike and is what is drawn where none is given.
            source_cameras: (B, 25), the cameras of the inputs where they are known; predicted otherwise.
            conditioning: of `encode`, in place of `image`, `cameras`, `num_inference_steps` and `source_cameras`.
            view_batch_size: views at a time in the UNet and the decoder, and feature maps at a time before; bounds the
                memory. None for all views at once.
            background: "turn" for what the UNet paints, which turns with the camera as in training; "photo" for the
                photo's own backdrop, standing still; or a color (r, g, b), each in [0, 1]. Without an appearance model
                it always turns.
            output_type: pil, np, pt or latent.
            return_dict: whether to return a `NVBFacePipelineOutput` rather than a tuple.
            callback_on_step_end: called after each step with the pipeline, the step, the time step and the tensors
                named in `callback_on_step_end_tensor_inputs`; what it returns of these replaces them from then on.
            callback_on_step_end_tensor_inputs: any of latents (B*V, C, h, w) and encoder_hidden_states (B*V, L, C).

        Raises:
            ValueError: an input is not as described.
        """
        # 1. Inputs, all checked before any model runs
        self._check_components(for_views=True)
        names = read_names(callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        shape = count_views(image, cameras, num_inference_steps, source_cameras, conditioning)  # (B, V)
        check_denoising(shape, self._latent_shape, generator, latents, view_batch_size, output_type)
        check_guidance(guidance_scale, eta)
        check_background(background, self.appearance is not None)

        # 2. Conditioning, for all steps before the UNet first runs
        if conditioning is None:
            assert image is not None  # checked above
            conditioning = self.encode(image, cameras, num_inference_steps, source_cameras, view_batch_size)
        elif not torch.equal(self._set_timesteps(conditioning.num_inference_steps), conditioning.timesteps):
            raise ValueError("`conditioning` was made for the time steps of another scheduler: `encode` again.")
        states, steps = conditioning.encoder_hidden_states, conditioning.num_inference_steps  # (T, B, V, L, C)

        # 3. Denoising
        latents = self._denoise(
            states, steps, guidance_scale, eta, generator, latents, view_batch_size, callback_on_step_end, names
        )  # (B*V, C, h, w)

        # 4. Decoding, and fusion with the photo's own pixels
        images, evidence = latents, None
        if output_type != "latent":
            images = self.decode_latents(latents, view_batch_size)  # (B*V, 3, S, S)
            if conditioning.layers is not None:
                images, evidence = fuse_views(self.appearance, images, conditioning, background, view_batch_size)

        # 5. Output
        self.maybe_free_model_hooks()
        output = NVBFacePipelineOutput(
            images=by_image(images, states.shape[2], conditioning.is_batch, output_type),
            source_cameras=conditioning.source_cameras,
            evidence=evidence if evidence is None or conditioning.is_batch else evidence[0],
        )
        return output if return_dict else output.to_tuple()

    @overload
    def restore(
        self,
        image: Images,
        fidelity: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        eta: float = 0.0,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        view_batch_size: int | None = None,
        output_type: str = "pil",
        return_dict: Literal[True] = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> NVBFaceRestorationOutput: ...

    @overload
    def restore(self, *args: Any, return_dict: Literal[False], **kwargs: Any) -> tuple[Any]: ...

    @torch.no_grad()  # type: ignore[misc]  # the tuple's overload leaves the other arguments out
    def restore(
        self,
        image: Images,
        fidelity: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        eta: float = 0.0,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        view_batch_size: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> NVBFaceRestorationOutput | tuple[Any]:
        """Restore the input's own view: by its own pixels, by step 1, or by both.

        Args:
            image: as in a call, and so are those not named here.
            fidelity: 0 to 1: what is seen of the photo's restored pixels, true to it and soft, over the UNet's image,
                which is sharp and partly invented. None for 1 where there is an appearance model, and for 0
                elsewhere. At 1 the UNet does not run, so there are no steps to call back after. Latents are the UNet's.
            num_inference_steps: denoising steps.
            guidance_scale: above 1, moves away from what the UNet predicts without the photo.
            eta: noise added at each step.
            generator: for results that can be repeated.
            latents: (B, 1, C, h, w).
            view_batch_size: images at a time.
            output_type: pil, np, pt or latent.
            return_dict: whether to return a `NVBFaceRestorationOutput` rather than a tuple.
            callback_on_step_end: called after each step of the UNet.
            callback_on_step_end_tensor_inputs: what it is given.

        Raises:
            ValueError: an input is not as described, or a fidelity is asked of what cannot have it.
        """
        # 1. Inputs
        self._check_components(for_views=False)
        images = image_list(image)
        names = read_names(callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        fidelity = read_fidelity(fidelity, self.appearance is not None and output_type != "latent")
        check_denoising((len(images), 1), self._latent_shape, generator, latents, view_batch_size, output_type)
        check_guidance(guidance_scale, eta)
        check_positive("num_inference_steps", num_inference_steps)

        # 2. What the UNet paints, where it is seen
        restored = None
        if fidelity < 1:
            features = self._encode_images(images, num_inference_steps, view_batch_size)[1]  # (T, B, C, 8, 8)
            states = features[:, :, None].flatten(4).mT  # (T, B, 1, L, C)
            steps = self._num_steps(num_inference_steps)
            restored = self._denoise(
                states, steps, guidance_scale, eta, generator, latents, view_batch_size, callback_on_step_end, names
            )  # (B, C, h, w)
            if output_type != "latent":
                restored = at_size(self.decode_latents(restored, view_batch_size), self.sample_size)  # (B, 3, S, S)

        # 3. What the photo's own pixels are restored to
        if fidelity > 0:
            faithful = self.appearance.restore(self.preprocess_images(images, self.sample_size))
            restored = faithful if restored is None else restored.clamp(-1, 1).lerp(faithful.to(restored), fidelity)

        # 4. Output
        self.maybe_free_model_hooks()
        output = NVBFaceRestorationOutput(images=by_image(restored, 1, images[0] is not image, output_type))
        return output if return_dict else output.to_tuple()

    def _denoise(
        self,
        encoder_hidden_states: torch.Tensor,
        num_inference_steps: int,
        guidance_scale: float | None,
        eta: float,
        generator: Generators,
        latents: torch.Tensor | None,
        view_batch_size: int | None,
        callback: Callback | None,
        callback_tensor_inputs: Sequence[str],
    ) -> torch.Tensor:
        """Latents (B*V, C, h, w) after all steps, from states (T, B, V, L, C) at the different time steps."""
        self._set_timesteps(num_inference_steps)
        timesteps = self.scheduler.timesteps  # as many as UNet passes; second-order schedulers visit one twice
        position = torch.unique(timesteps, return_inverse=True)[1].tolist()
        num_images, num_views = encoder_hidden_states.shape[1:3]
        device, dtype = self._execution_device, self.unet.dtype
        if latents is None:  # one noise for all views of an image, more alike so; the same for any precision
            latents = randn_tensor((num_images, 1, *self._latent_shape), generator, device, torch.float32)
        latents = latents.to(device, dtype).expand(-1, num_views, -1, -1, -1).flatten(0, 1)  # (B*V, C, h, w)
        latents = latents * self.scheduler.init_noise_sigma
        encoder_hidden_states = encoder_hidden_states.to(device, dtype)
        self._guidance_scale = self.config.default_guidance_scale or 1.0 if guidance_scale is None else guidance_scale
        self._num_timesteps, self._interrupt = len(timesteps), False  # a callback may set the second
        step_kwargs, replaced = extra_step_kwargs(self.scheduler, generator, eta, num_views), None
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for i, (t, step) in enumerate(zip(timesteps, position, strict=True)):
                states = encoder_hidden_states[step].flatten(0, 1) if replaced is None else replaced  # (B*V, L, C)
                latent_input = self.scheduler.scale_model_input(latents, t)  # (B*V, C, h, w)
                model_pred = guided_prediction(
                    self.unet, latent_input, t, states, self._guidance_scale, view_batch_size
                )
                latents = self.scheduler.step(model_pred, t, latents, **step_kwargs, return_dict=False)[0]
                if callback is not None:
                    tensors = {"latents": latents, STATES: states}
                    changed = call_back(callback, self, i, t, tensors, callback_tensor_inputs)
                    latents, replaced = changed.get("latents", latents), changed.get(STATES, replaced)
                progress_bar.update()
                if self._interrupt:
                    break
        return latents
