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

function drawNow(place) {
  const paper = document.documentElement.classList.contains("paper");
  const { data, layout } = JSON.parse(place.querySelector("script").textContent);
  const look = JSON.parse(document.getElementById("look").textContent);
  Object.assign(look.layout, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" });
  look.layout.font = { family: getComputedStyle(document.body).fontFamily, color: colour("--text") };
  look.layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: colour("--soft") };
  for (const axis of ["xaxis", "yaxis"]) {
    const lines = { gridcolor: colour("--line"), linecolor: colour("--line") };
    look.layout[axis] = { ...look.layout[axis], ...lines, zerolinecolor: colour("--line") };
  }
  return Plotly.newPlot(place, data, { ...layout, template: look, autosize: true }, {
    responsive: true, displaylogo: false, displayModeBar: paper ? false : "hover",
    modeBarButtons: [["toImage", "resetScale2d"]],
  });
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
// Names of neurons put their command where it stands.
document.querySelectorAll("a.unit").forEach((link) => {
  link.addEventListener("click", () => {
    const place = document.getElementById("unit-page");
    place.textContent = place.textContent.replace(/L\d+N\d+/, link.textContent);
  });
});

// Paper shows everything, black on white and as wide as it is; then all is as it was.
const dark = matchMedia("(prefers-color-scheme: dark)");
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
});

addEventListener("afterprint", () => {
  document.documentElement.classList.remove("paper");
  unfolded.forEach((folded) => { folded.open = false; });
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
