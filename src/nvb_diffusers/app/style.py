"""How the page looks, how the head is turned by dragging in its picture, and what screen readers call the examples."""

CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto; }
#title h1 { margin-bottom: 0; letter-spacing: -0.02em; }
#title p { margin-top: 0.25rem; opacity: 0.75; }
#view { touch-action: none; user-select: none; }
#view img { cursor: grab; aspect-ratio: 1; -webkit-user-drag: none; }
#view .image-frame { width: min(100%, 480px) !important; height: auto !important; }
#view img { width: 100% !important; height: auto !important; object-fit: contain !important; }
#view img:active { cursor: grabbing; }
#said { min-height: 1.6em; font-size: 0.9em; opacity: 0.8; }
#legend span { display: inline-block; margin-right: 1em; }
#legend i { display: inline-block; width: 0.8em; height: 0.8em; border-radius: 50%; margin-right: 0.35em; }
"""

DEGREES_A_PIXEL = 0.3
JS = (
    """
() => {
  const set = (id, change) => {
    const input = document.querySelector(`#${id} input[type=range]`);
    const value = Math.min(+input.max, Math.max(+input.min, +input.value + change));
    Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(input, Math.round(value));
    input.dispatchEvent(new Event('input', { bubbles: true }));
    return input;
  };
  const named = () => document.querySelectorAll('button.gallery-item:not([aria-label])').forEach(button => {
    const image = button.querySelector('img[src]:not([src=""])');
    if (image) button.setAttribute('aria-label', 'Example: ' + decodeURIComponent(image.src.split('/').pop()));
  });
  new MutationObserver(named).observe(document.body, { childList: true, subtree: true });
  let from = null, left = [0, 0];
  document.addEventListener('pointerdown', event => {
    if (event.target.closest('#view') && event.target.tagName === 'IMG') {
      from = [event.clientX, event.clientY]; left = [0, 0]; event.preventDefault();
    }
  });
  document.addEventListener('pointermove', event => {
    if (!from) return;
    const turn = [(from[0] - event.clientX) * DEGREES, (event.clientY - from[1]) * DEGREES];
    ['yaw', 'pitch'].forEach((id, axis) => {
      const whole = Math.trunc(turn[axis] - left[axis]);
      if (whole) { left[axis] += whole; set(id, whole); }
    });
  });
  document.addEventListener('pointerup', () => {
    if (!from) return;
    from = null;
    ['yaw', 'pitch'].forEach(id => set(id, 0).dispatchEvent(new Event('pointerup', { bubbles: true })));
  });
}
"""
).replace("DEGREES", str(DEGREES_A_PIXEL))

LEGEND = (
    '<div id="legend"><span><i style="background:#e33"></i>seen in the photo</span>'
    '<span><i style="background:#3b3"></i>seen in its mirror image</span>'
    '<span><i style="background:#36f"></i>invented</span></div>'
)
