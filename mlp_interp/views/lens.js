// Draws every lens below `root`: a cell's click shows what it says, a token's click where else it
// is said. Texts only ever become text nodes.
function wireLenses(root) {
  for (const place of root.querySelectorAll("figure.lens")) drawLens(place);
}

function drawLens(place) {
  const data = JSON.parse(place.querySelector("script").textContent);
  const [select, table, told] = ["select", "table", ".told"].map((x) => place.querySelector(x));
  const names = Object.keys(data.values);
  let pinned = null, chosen = null;
  const cells = [];

  function add(parent, kind, text, look) {
    const element = document.createElement(kind);
    element.textContent = text;
    if (look) element.className = look;
    parent.append(element);
    return element;
  }

  const line = (kind, texts, marked) => {
    const row = add(add(table, kind, ""), "tr", "");
    add(row, "th", "");
    texts.forEach((text, at) => add(row, "th", text, marked && marked[at] ? "right" : ""));
  };

  // Between 0 and 1: how dark a cell is.
  function share(layer, at) {
    if (pinned !== null) {
      const place = data.top[layer][at].indexOf(pinned);
      return place < 0 ? 0 : data.p[layer][at][place];
    }
    const name = names[select.selectedIndex], value = data.values[name][layer][at];
    if (value === null) return 0;
    if (name.startsWith("logp")) return Math.exp(value);
    if (name.startsWith("rank")) return 1 / (1 + Math.log10(value + 1));
    const largest = Math.max(...data.values[name].flat().filter((x) => x !== null));
    return largest > 0 ? 1 - value / largest : 1;
  }

  function paint() {
    for (const { button, layer, at } of cells) {
      button.style.background = `rgba(33, 102, 172, ${(0.65 * share(layer, at)).toFixed(3)})`;
      button.setAttribute("aria-pressed", chosen !== null && chosen.button === button);
    }
  }

  function tell() {
    told.replaceChildren();
    if (chosen === null) return;
    const { layer, at } = chosen;
    const left = add(told, "div", ""), right = add(told, "div", "");
    add(left, "b", `layer ${data.layers[layer]} after `);
    add(left, "b", data.read[at]);
    const list = add(left, "ol", "");
    data.top[layer][at].forEach((word, rank) => {
      const item = add(list, "li", "");
      const button = add(item, "button", data.words[word]);
      button.setAttribute("aria-pressed", word === pinned);
      button.title = "show where layers say it";
      button.onclick = () => { pinned = word === pinned ? null : word; paint(); tell(); };
      item.append(`${data.p[layer][at][rank].toPrecision(3)}`);
    });
    const numbers = add(right, "dl", "");
    for (const name of names) {
      const value = data.values[name][layer][at];
      if (value === null) continue;
      add(numbers, "dt", `${value} ${data.units[name]}`);
      add(numbers, "dd", data.about[name]);
    }
  }

  line("thead", data.next, data.right);
  const body = add(table, "tbody", "");
  for (let layer = data.layers.length - 1; layer >= 0; layer--) {
    const row = add(body, "tr", "");
    add(row, "th", `layer ${data.layers[layer]}`);
    data.top[layer].forEach((words, at) => {
      const button = add(add(row, "td", ""), "button", data.cut[words[0]] ?? data.words[words[0]]);
      const cell = { button, layer, at };
      button.onclick = () => { chosen = cell; paint(); tell(); };
      cells.push(cell);
    });
  }
  line("tfoot", data.read);
  select.onchange = () => { pinned = null; paint(); tell(); };
  chosen = cells.find(({ at, layer }) =>
    at === data.read.length - 1 && layer === data.layers.length - 1);
  paint();
  tell();
}
