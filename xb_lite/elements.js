// Every element of this class that has not begun: puts in what only scripts can work, which waits
// where neither a page without scripts shows it, nor one that takes them away, as Jupyter does
// before a cell is run; then shows the data.
function start(name, show) {
  for (const root of document.querySelectorAll(`.${name}:not([data-ready])`)) {
    root.dataset.ready = "";
    for (const part of root.querySelectorAll("script[type='text/html']")) {
      part.outerHTML = part.textContent;
    }
    const find = (selector) => root.querySelector(selector);
    find("form").addEventListener("submit", (event) => event.preventDefault());
    show(root, find, JSON.parse(find("script[type='application/json']").textContent));
  }
}

// Says a text aloud, once a drag has come to rest.
function speaker(status, text) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      status.textContent = text();
    }, 400);
  };
}

// Puts a new part of a picture into another.
function add(parent, name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return parent.appendChild(made);
}
