// The page shows its text at once and then draws one figure after the other, so that it never
// stalls; what is folded away is drawn when it is opened.
const libraries = {};
function library(id) { return (libraries[id] ??= runPacked(id)); }

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

async function drawFigure(place) {
  await library("plotly");
  return drawNow(place);
}

// Two figures fit on a page of paper; what is much higher has a page of its own.
function lower(layout) {
  if (layout.height <= 505) return;
  layout.height = 505;
  for (const [name, axis] of Object.entries(layout)) {
    const named = name.startsWith("yaxis") && axis.type === "category";
    if (named) Object.assign(axis, { dtick: 1, tickfont: { size: 10 } });
  }
}

async function drawNow(place) {
  const paper = document.documentElement.classList.contains("paper");
  const { data, layout } = JSON.parse(place.querySelector("script").textContent);
  // What has a width needs that much at least.
  if (layout.width) layout.width = Math.max(layout.width, place.clientWidth);
  if (paper && layout.height < 900) lower(layout);
  const look = JSON.parse(document.getElementById("look").textContent);
  Object.assign(look.layout, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" });
  look.layout.font = { family: getComputedStyle(document.body).fontFamily, color: colour("--text") };
  look.layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: colour("--soft") };
  for (const axis of ["xaxis", "yaxis"]) {
    const lines = { gridcolor: colour("--line"), linecolor: colour("--line") };
    look.layout[axis] = { ...look.layout[axis], ...lines, zerolinecolor: colour("--line") };
  }
  await Plotly.newPlot(place, data, { ...layout, template: look, autosize: true }, {
    responsive: true, displaylogo: false,
    displayModeBar: paper || matchMedia("(hover: none)").matches ? false : "hover",
    modeBarButtons: [["toImage", "resetScale2d"]],
  });
  place.on("plotly_click", tellPoint);
}

async function drawViews(place) {
  await library("circuitsvis");
  mountViews(place);
}

async function draw(place) {
  try {
    await (place.matches(".plot") ? drawFigure(place) : drawViews(place));
  } catch (error) {
    const trouble = document.getElementById("trouble");
    trouble.hidden = false;
    trouble.textContent = `Some figures could not be drawn (${error}); a browser of 2023 or later `
      + "is needed. The numbers are also in the files beside this page.";
  }
}

async function drawAll(root) {
  for (const place of root.querySelectorAll(".plot:not([data-drawn]), .views:not([data-drawn])")) {
    if (place.closest("details:not([open])")) continue;
    place.dataset.drawn = "yes";
    await draw(place);
    await new Promise((resume) => setTimeout(resume));
  }
}

document.querySelectorAll("details").forEach((folded) => {
  folded.addEventListener("toggle", () => drawAll(folded));
});
// A head or neuron, by its name in the text or its mark in a figure, has a command that shows all
// about it.
const more = document.getElementById("more");

function commandOf(unit) {
  return more.dataset[unit.includes("N") ? "neuron" : "head"].replace("{}", unit);
}

function tell(unit) {
  more.hidden = false;
  more.firstElementChild.textContent = commandOf(unit);
}

function tellPoint({ points: [point] }) {
  const { x, y, text, hovertext, customdata } = point;
  const unit = [y, x, text, hovertext, customdata].flat(3).join(" ").match(/L\d+[HN]\d+/);
  if (more && unit) tell(unit[0]);
}

document.querySelectorAll("a.unit").forEach((link) => {
  link.title = commandOf(link.textContent);
  link.onclick = (event) => { event.preventDefault(); tell(link.textContent); };
});

// Paper shows everything, black on white and as wide as it is; then all is as it was.
const dark = matchMedia("(prefers-color-scheme: dark)");
const grids = document.querySelectorAll(".lens .grid");
let unfolded = [];

function redraw() {
  for (const place of document.querySelectorAll(".plot[data-drawn]")) {
    if (!place.closest("details:not([open])")) drawFigure(place);
  }
}

addEventListener("beforeprint", () => {
  unfolded = [...document.querySelectorAll("details:not([open])")];
  unfolded.forEach((folded) => { folded.open = true; });
  document.documentElement.classList.add("paper");
  for (const place of document.querySelectorAll(".plot")) {
    place.dataset.drawn = "yes";
    if (window.Plotly) drawNow(place);
  }
  // Nobody can scroll on paper.
  for (const grid of grids) grid.style.zoom = Math.min(1, 0.95 * grid.clientWidth / grid.scrollWidth);
});

addEventListener("afterprint", () => {
  document.documentElement.classList.remove("paper");
  unfolded.forEach((folded) => { folded.open = false; });
  for (const grid of grids) grid.style.zoom = "";
  redraw();
});

dark.addEventListener("change", redraw);
wireChoices(document);
wireLenses(document);
// Both libraries are there before somebody prints what is folded away.
setTimeout(async () => {
  await drawAll(document);
  for (const id of ["plotly", "circuitsvis"]) if (document.getElementById(id)) await library(id);
  if (window.CircuitsVis) mountViews(document);
});
