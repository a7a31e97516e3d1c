// Decisions on doubtful labels: by mouse and keyboard, kept in this browser, downloaded as suspects.csv.
"use strict";
document.documentElement.classList.add("script");
const data = JSON.parse(document.getElementById("data").textContent);
const cards = [...document.querySelectorAll(".card")];
const decisions = data.decisions.map(([action, label]) => [action, label]);
let saved = true;
let current = -1; // the card that was looked at last

const remember = {
  key: `suspects:${data.key}`,
  load() {
    try {
      const held = JSON.parse(localStorage.getItem(this.key) ?? "[]");
      for (const [index, action, label] of held) if (index in decisions) decisions[index] = [action, label];
    } catch { /* a browser that keeps nothing */ }
  },
  save() {
    try {
      const held = decisions.map(([action, label], index) => [index, action, label]).filter(([index]) => index < cards.length);
      localStorage.setItem(this.key, JSON.stringify(held));
    } catch { /* the same */ }
  },
};

function show(index) {
  const [action, label] = decisions[index];
  const card = cards[index];
  card.classList.toggle("done", action !== "");
  for (const radio of card.querySelectorAll("input")) radio.checked = radio.value === action;
  const select = card.querySelector("select");
  if (action === "relabel" && select.value !== label) {
    offer(select);
    select.value = label;
  }
  const decided = decisions.slice(0, cards.length).filter(([done]) => done !== "").length;
  document.querySelector("[role=status]").textContent = `${decided} of ${cards.length} decided`;
}

// The classes are offered when somebody wants to choose: a thousand of them in each card would be slow.
function offer(select) {
  if (select.options.length > 1 || data.classes.length < 2) return;
  const chosen = select.value;
  select.replaceChildren(...data.classes.map((name) => new Option(name, name)));
  select.value = chosen;
}

function decide(index, action) {
  decisions[index] = [action, action === "relabel" ? cards[index].querySelector("select").value : ""];
  saved = false;
  remember.save();
  show(index);
}

function go(index) {
  if (index < 0 || index >= cards.length) return;
  cards[index].focus({preventScroll: true});
  cards[index].scrollIntoView({block: "nearest"});
}

function undecidedAfter(index) {
  const order = cards.map((_, step) => (index + 1 + step) % cards.length);
  return order.find((at) => decisions[at][0] === "") ?? -1;
}

function csv() {
  const rows = data.lines.map((line, index) => {
    const [action, label] = decisions[index];
    return `${line},"${action}",${label === "" ? '""' : data.cells[data.labels.indexOf(label)]}`;
  });
  return "\ufeff" + [data.head, ...rows, ""].join("\r\n");
}

cards.forEach((card, index) => {
  const select = card.querySelector("select");
  for (const event of ["focus", "pointerdown"]) select.addEventListener(event, () => offer(select));
  select.addEventListener("change", () => decide(index, "relabel"));
  for (const radio of card.querySelectorAll("input")) radio.addEventListener("change", () => decide(index, radio.value));
  card.addEventListener("focusin", () => { current = index; });
  card.querySelector(".clear").addEventListener("click", () => decide(index, ""));
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, button")) return;
  const index = cards.indexOf(document.activeElement.closest?.(".card"));
  const action = {k: "keep", r: "relabel", d: "drop", u: ""}[event.key.toLowerCase()];
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    go(index < 0 ? 0 : index + (event.key === "ArrowDown" ? 1 : -1));
  } else if (action !== undefined && index >= 0) {
    decide(index, action);
    if (action !== "") go(undecidedAfter(index));
  } else {
    return;
  }
  event.preventDefault();
});

document.getElementById("next").addEventListener("click", () => {
  go(undecidedAfter(current));
});

document.getElementById("download").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv()], {type: "text/csv"}));
  link.download = "suspects.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  saved = true;
});

addEventListener("beforeunload", (event) => {
  if (!saved) event.preventDefault();
});

remember.load();
cards.forEach((_, index) => show(index));
