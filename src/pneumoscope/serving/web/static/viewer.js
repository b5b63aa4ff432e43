// Shows a radiograph at full depth: window, level, zoom, move, invert, and the map as an overlay.
"use strict";

const TOP = 65535;
const canvas = document.getElementById("canvas");
const status_ = document.getElementById("viewer-state");
const control = (name) => document.getElementById(name);

// What is shown. zoom 1 fits the image into the canvas; x and y move it, in pixels of the image.
const view = { center: 0, width: 0, zoom: 1, x: 0, y: 0, invert: false, overlay: false, opacity: 0.6 };
let first = null; // the window that the header asks for
let values = null; // Uint16Array, row by row
let picture = null; // the windowed image, at its own size
let map = null; // the overlay, once loaded

async function load() {
  const answer = await fetch(canvas.dataset.pixels);
  if (!answer.ok) {
    throw new Error((await answer.json()).detail);
  }
  first = JSON.parse(answer.headers.get("X-Rendition"));
  values = new Uint16Array(await answer.arrayBuffer()); // little-endian, as browsers' machines are
  picture = new OffscreenCanvas(first.columns, first.rows);
  reset();
}

function reset() {
  Object.assign(view, { center: first.center, width: first.width, zoom: 1, x: 0, y: 0, invert: false });
  windowed();
}

// Applies window and level (PS3.3, C.11.2.1.2) through a table, and draws.
function windowed() {
  view.width = Math.min(2 * TOP, Math.max(64, view.width));
  view.center = Math.min(TOP, Math.max(0, view.center));
  const table = new Uint8ClampedArray(TOP + 1);
  const low = view.center - view.width / 2;
  for (let value = 0; value <= TOP; value++) {
    const grey = (255 * (value - low)) / view.width;
    table[value] = view.invert ? 255 - Math.min(255, Math.max(0, grey)) : grey;
  }
  const image = new ImageData(first.columns, first.rows);
  const words = new Uint32Array(image.data.buffer);
  for (let index = 0; index < values.length; index++) words[index] = 0xff000000 | (table[values[index]] * 0x010101);
  picture.getContext("2d").putImageData(image, 0, 0);
  draw();
}

function draw() {
  const ratio = window.devicePixelRatio || 1;
  const box = canvas.getBoundingClientRect();
  canvas.width = Math.round(box.width * ratio);
  canvas.height = Math.round(box.height * ratio);
  const context = canvas.getContext("2d");
  const scale = scaled();
  context.setTransform(scale, 0, 0, scale, canvas.width / 2 + view.x * scale, canvas.height / 2 + view.y * scale);
  context.imageSmoothingEnabled = scale < 3;
  context.imageSmoothingQuality = "high";
  const left = -first.columns / 2;
  const upper = -first.rows / 2;
  context.drawImage(picture, left, upper);
  if (view.overlay && map) {
    context.imageSmoothingEnabled = true;
    context.globalAlpha = view.opacity;
    context.drawImage(map, left, upper, first.columns, first.rows);
    context.globalAlpha = 1;
  }
  showState();
}

// Pixels of the canvas for one pixel of the image.
function scaled() {
  return view.zoom * Math.min(canvas.width / first.columns, canvas.height / first.rows);
}

function showState() {
  control("level").value = view.center;
  control("window").value = view.width;
  document.querySelector("[data-do=invert]").setAttribute("aria-pressed", view.invert);
  const toggle = control("overlay");
  if (toggle) toggle.setAttribute("aria-pressed", view.overlay);
  const unit = (first.last - first.first) / TOP; // one step, in values of the file
  const center = Math.round(first.first + view.center * unit);
  status_.textContent =
    `Level ${center}, window ${Math.round(Math.abs(view.width * unit))}; zoom ${view.zoom.toFixed(1)}` +
    (view.invert ? "; inverted" : "") + (view.overlay ? "; overlay on" : "");
  canvas.dataset.ready = "yes";
}

async function overlay() {
  if (!canvas.dataset.overlay) return;
  if (!map) {
    const image = new Image();
    image.src = canvas.dataset.overlay;
    await image.decode();
    map = image;
  }
  view.overlay = !view.overlay;
  draw();
}

function zoom(factor) {
  view.zoom = Math.min(20, Math.max(0.5, view.zoom * factor));
  draw();
}

function move(x, y) {
  view.x = Math.min(first.columns / 2, Math.max(-first.columns / 2, view.x + x));
  view.y = Math.min(first.rows / 2, Math.max(-first.rows / 2, view.y + y));
  draw();
}

function change(center, width) {
  view.center += center;
  view.width += width;
  soon();
}

// A mouse moves more often than a large image can be windowed.
function soon() {
  if (soon.due) return;
  soon.due = true;
  window.requestAnimationFrame(() => { soon.due = false; windowed(); });
}

const actions = {
  "zoom-in": () => zoom(1.25),
  "zoom-out": () => zoom(0.8),
  invert: () => { view.invert = !view.invert; windowed(); },
  reset,
  overlay: () => overlay().catch(fail),
};

const step = () => first.columns / 20;
const keys = {
  "+": actions["zoom-in"],
  "=": actions["zoom-in"],
  "-": actions["zoom-out"],
  i: actions.invert,
  r: actions.reset,
  o: actions.overlay,
  "[": () => change(0, -0.05 * first.width),
  "]": () => change(0, 0.05 * first.width),
  ";": () => change(-0.02 * first.width, 0),
  "'": () => change(0.02 * first.width, 0),
  ArrowLeft: () => move(step(), 0),
  ArrowRight: () => move(-step(), 0),
  ArrowUp: () => move(0, step()),
  ArrowDown: () => move(0, -step()),
};

function listen() {
  for (const button of document.querySelectorAll("[data-do]")) button.addEventListener("click", actions[button.dataset.do]);
  control("level").addEventListener("input", (event) => { view.center = Number(event.target.value); soon(); });
  control("window").addEventListener("input", (event) => { view.width = Number(event.target.value); soon(); });
  control("opacity")?.addEventListener("input", (event) => { view.opacity = Number(event.target.value) / 100; draw(); });
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoom(event.deltaY < 0 ? 1.1 : 1 / 1.1); }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
  canvas.addEventListener("pointermove", drag);
  new ResizeObserver(draw).observe(canvas);
}

function drag(event) {
  if (!event.buttons) return;
  if (event.shiftKey || event.buttons & 4) {
    const ratio = (window.devicePixelRatio || 1) / scaled();
    move(event.movementX * ratio, event.movementY * ratio);
  } else {
    const box = canvas.getBoundingClientRect();
    change((-event.movementY / box.height) * first.width, (event.movementX / box.width) * first.width);
  }
}

function fail(error) {
  status_.textContent = `The radiograph cannot be shown: ${error.message}`;
  status_.classList.add("bad");
}

if (canvas) load().then(listen).catch(fail);
