// Draws what Python says of one prompt and asks it for more. `model` sends and hears messages, as a
// Jupyter widget does; a page that stands by itself has one that knows its answers already.
const NEGATIVE = "178, 24, 43", POSITIVE = "33, 102, 172";

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function shade(element, value, limit) {
  if (value === null || !limit) return;
  const strength = 0.85 * Math.min(1, Math.abs(value) / limit);
  element.style.background = `rgba(${value < 0 ? NEGATIVE : POSITIVE}, ${strength})`;
  if (strength > 0.55) element.style.color = "white";
}

function signed(value, decimals) {
  const small = value !== 0 && Math.abs(value) < 0.001;
  const shown = decimals !== undefined ? value.toFixed(decimals)
    : small ? value.toExponential(1) : value.toPrecision(3);
  return (value > 0 ? "+" : "") + shown.replace("-", "−");
}

function button(className, text, label, click) {
  const element = make("button", className, text);
  element.type = "button";
  if (label) element.title = label;
  element.onclick = click;
  return element;
}

function render({ model, el }) {
  const root = make("div", "mlp-explorer");
  el.append(root);
  const state = { text: null, map: null, unit: null, over: null, asked: 0 };

  // What is answered is drawn if nothing else was asked meanwhile.
  function ask(question) {
    state.asked += 1;
    root.classList.add("busy");
    model.send({ ...question, id: state.asked });
  }

  model.on("msg:custom", (message) => {
    if (message.id !== state.asked) return;
    root.classList.remove("busy");
    if (message.error) return trouble(message.error);
    if (message.text) Object.assign(state, { text: message.text, unit: null });
    if (message.map) state.map = message.map;
    if (message.unit !== undefined) Object.assign(state, { unit: message.unit, over: null });
    draw();
  });

  function chosen() {
    const { position, answer, foil } = state.map;
    return { position, answer, foil };
  }

  // A unit that was open stays open when the prediction changes.
  function askMap(change) {
    const unit = state.unit && state.unit.unit;
    ask({ ask: "map", ...chosen(), ...change, unit });
  }

  function askUnit(unit) { ask({ ask: "unit", ...chosen(), unit }); }

  function trouble(error) {
    const place = root.querySelector(".trouble");
    if (place) place.textContent = error;
  }

  function draw() {
    const parts = [prompt(), tokens(), predictions(), make("p", "trouble")];
    const below = make("div", "below");
    below.append(map(), detail());
    root.replaceChildren(...parts.filter(Boolean), below);
  }

  function prompt() {
    if (!state.text.live) return null;
    const form = make("form", "prompt");
    const field = make("input");
    field.value = state.text.prompt;
    field.setAttribute("aria-label", "prompt");
    field.placeholder = "a prompt";
    form.append(field, make("button", "run", "Run"));
    form.onsubmit = (event) => {
      event.preventDefault();
      ask({ ask: "text", text: field.value });
    };
    return form;
  }

  function tokens() {
    const row = make("p", "tokens");
    const over = state.unit && state.unit.over;
    const names = over ? Object.keys(over) : [];
    const name = names.includes(state.over) ? state.over : names[0];
    const values = over ? over[name] : [];
    const limit = Math.max(0, ...values.map(Math.abs));
    state.text.tokens.forEach((token, position) => {
      const value = position < values.length ? values[position] : null;
      const held = state.text.live || state.text.positions.includes(position);
      const element = button("token", token || "∅", null, () => askMap({ position, answer: null }));
      element.disabled = !held;
      shade(element, value, limit);
      element.title = value === null ? `position ${position}` : `${name}: ${signed(value)}`;
      if (position === state.map.position) element.classList.add("here");
      row.append(element);
    });
    if (!names.length) return row;
    const block = make("div");
    const legend = make("p", "legend", `${state.unit.unit}: `);
    for (const each of names) {
      const pick = button(each === name ? "pick on" : "pick", each, null, () => {
        state.over = each;
        draw();
      });
      legend.append(pick, " ");
    }
    legend.append(`full colour is ${signed(limit).replace("+", "±")}`);
    block.append(row, legend);
    return block;
  }

  function predictions() {
    const row = make("p", "predictions", "It predicts ");
    const { answer, foil, predictions: top } = state.map;
    for (const { token, text, p } of top) {
      const share = p > 0.995 ? `${(100 * p).toFixed(1)}%` : `${(100 * p).toPrecision(2)}%`;
      const element = button("chip", `${text} `, "attribute this token's logit", (event) => {
        if (!event.shiftKey) askMap({ answer: token, foil: token === foil ? null : foil });
        else if (state.text.live) askMap({ foil: token === foil ? null : token });
      });
      element.append(make("small", "", share));
      element.disabled = !(state.text.live
        || state.text.held.includes(`${state.map.position}|${token}`));
      if (token === answer) element.classList.add("on");
      if (token === foil) element.classList.add("against");
      row.append(element, " ");
    }
    if (state.text.live) row.append(make("small", "", "shift-click: the token to compare with"));
    return row;
  }

  function map() {
    const { columns, values, rest, names, total, log_p: logP, rank } = state.map;
    const block = make("div", "map");
    const sentence = make("p", "sentence", "What adds to the logit of ");
    sentence.append(make("b", "", names.answer), " less ");
    sentence.append(state.map.foil === null ? names.foil : make("b", "", names.foil));
    sentence.append(`: ${signed(total)} in all (log-probability ${signed(logP)}, rank ${rank})`);
    const limit = Math.max(...values.flat().map((x) => Math.abs(x ?? 0)));
    const table = make("table");
    const head = make("tr");
    head.append(make("th"), ...columns.map((name) => make("th", "", name)));
    table.append(head);
    for (let layer = values.length - 1; layer >= 0; layer--) {
      const row = make("tr");
      row.append(make("th", "", `${layer}`));
      columns.forEach((column, at) => {
        const value = values[layer][at];
        const unit = column[0] === "H" ? `L${layer}${column}` : `${layer}.${column}`;
        const cell = make("td");
        if (value !== null) {
          const click = button("cell", signed(value, limit < 1 ? 3 : 2), `${unit}: ${signed(value)}`,
            () => askUnit(unit));
          shade(click, value, limit);
          click.setAttribute("aria-label", `${unit} ${signed(value)}`);
          if (state.unit && state.unit.unit === unit) click.classList.add("here");
          cell.append(click);
        }
        row.append(cell);
      });
      table.append(row);
    }
    const scroll = make("div", "scroll");
    scroll.append(table);
    const others = rest.map(({ name, share }) => `${name} ${signed(share)}`).join(", ");
    const note = `Rows are layers. Numbers are logits; full colour is ±${limit.toPrecision(3)}. `
      + `Beside these: ${others}.`;
    block.append(sentence, scroll, make("p", "note", note));
    return block;
  }

  function detail() {
    const block = make("div", "detail");
    const { unit } = state;
    if (!unit) {
      const hint = "Click on a number to see what that sub-update or head wrote.";
      block.append(make("p", "note", hint));
      return block;
    }
    const title = make("h3", "", unit.unit);
    title.append(make("small", "", ` ${signed(unit.share)} logits at this position`));
    block.append(title);
    const lists = make("div", "lists");
    lists.append(list("promotes", unit.promoted), list("suppresses", unit.suppressed));
    block.append(lists);
    if (unit.neurons) block.append(neurons(unit.neurons));
    if (/N\d+$/.test(unit.unit)) {
      const call = `mi.neurons.neuron_page(model, "${unit.unit}", corpus)`;
      const page = make("p", "note", "Its page over a corpus: ");
      page.append(make("code", "", call));
      block.append(page);
    }
    return block;
  }

  function list(name, tokens) {
    const table = make("table");
    table.append(make("caption", "", name));
    const limit = Math.max(...tokens.map(({ logit }) => Math.abs(logit)));
    for (const { text, logit } of tokens) {
      const row = make("tr");
      const word = make("td");
      word.append(make("bdi", "word", text || "∅"));
      const number = make("td", "number", signed(logit));
      shade(number, logit, 2 * limit);
      row.append(word, number);
      table.append(row);
    }
    return table;
  }

  function neurons(found) {
    const table = make("table", "neurons");
    table.append(make("caption", "", "neurons that add most here, for and against"));
    const head = make("tr");
    for (const name of ["", "share", "activation", "promotes"]) head.append(make("th", "", name));
    table.append(head);
    for (const { unit, share, activation, promoted } of found) {
      const row = make("tr");
      const name = make("td");
      name.append(button("link", unit, "see this neuron", () => askUnit(unit)));
      const words = make("td");
      for (const text of promoted) words.append(make("bdi", "word", text || "∅"), " ");
      const numbers = [share, activation].map((x) => make("td", "number", signed(x)));
      row.append(name, ...numbers, words);
      table.append(row);
    }
    return table;
  }

  ask({ ask: "first" });
  setTimeout(() => {
    if (!state.text) root.append("Python does not answer here: run the cell again.");
  }, 10000);
}
