// Layers and swipe: left of the line the topmost of the shown layers, right of it the others.
const byId = (id) => document.getElementById(id);
const [map, model, swipe, zoom] = ["map-layers", "map-model", "map-swipe", "map-zoom"].map(byId);
const layers = [...map.querySelectorAll("[data-layer]")];

function draw() {
  const shown = layers.filter((layer) => {
    const ofModel = !("model" in layer.dataset) || layer.dataset.model === model.value;
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
  map.style.width = `${100 * zoom.value}%`;
  byId("map-state").textContent = top
    ? `Left of the line: ${top.dataset.layer}. Right of it: ${below.join(" and ") || "imagery alone"}.`
    : "Imagery alone.";
}

byId("map-controls").addEventListener("input", draw);
byId("map-controls").hidden = false;
draw();
