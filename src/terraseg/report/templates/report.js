// Layers and swipe: the top layer is left of the line, the other shown layers are right of it.
const byId = (id) => document.getElementById(id);
const [map, model, swipe, zoom] = ["map-layers", "map-model", "map-swipe", "map-zoom"].map(byId);
const view = map.parentElement;
const layers = [...map.querySelectorAll("[data-layer]")];

function draw() {
  const shown = layers.filter((layer) => {
    const ofModel = !("model" in layer.dataset) || layer.dataset.model === model?.value;
    layer.hidden = !(ofModel && byId(`map-${layer.dataset.layer}`).checked);
    return !layer.hidden;
  });
  const at = Number(swipe.value);
  const top = shown.at(-1);
  for (const layer of shown) {
    layer.style.clipPath = layer === top ? `inset(0 ${100 - at}% 0 0)` : `inset(0 0 0 ${at}%)`;
  }
  const below = shown.slice(0, -1).map((layer) => layer.dataset.layer);
  byId("map-line").hidden = !top;
  byId("map-line").style.left = `${at}%`;
  byId("map-shade-layer").hidden = !byId("map-shade").checked;
  zoomTo(Number(zoom.value));
  byId("map-state").textContent = top
    ? `Left of the line: ${top.dataset.layer}. Right of it: ${below.join(" and ") || "only imagery"}.`
    : "Only imagery.";
}

// The centre of the view stays in place.
function zoomTo(factor) {
  const width = `${100 * factor}%`;
  if (map.style.width === width) return;
  const across = (view.scrollLeft + view.clientWidth / 2) / map.offsetWidth;
  const down = (view.scrollTop + view.clientHeight / 2) / map.offsetHeight;
  map.style.width = width;
  view.scrollTo(across * map.offsetWidth - view.clientWidth / 2, down * map.offsetHeight - view.clientHeight / 2);
}

// A mouse drags the map; touch and arrow keys scroll it anyway.
let grabbed = null;
view.addEventListener("pointerdown", (event) => {
  if (event.pointerType !== "mouse" || event.button || event.target === view) return;
  grabbed = [event.clientX + view.scrollLeft, event.clientY + view.scrollTop];
  view.setPointerCapture(event.pointerId);
});
view.addEventListener("pointermove", (event) => {
  if (grabbed) view.scrollTo(grabbed[0] - event.clientX, grabbed[1] - event.clientY);
});
view.addEventListener("lostpointercapture", () => (grabbed = null));
view.addEventListener("dragstart", (event) => event.preventDefault());

byId("map-controls").addEventListener("input", draw);
byId("map-controls").hidden = false;
draw();
