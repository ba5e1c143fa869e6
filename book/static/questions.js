/* Questions to check yourself. On the page stand a question, a numbered list of options, and a folded
   <details class="answer"> with a numbered list of as many answers, of which the right one begins with
   "Right". That is all that Colab, a printer, or a browser without scripts shows. Here the list becomes
   a group of radio buttons; the answer to the option that was chosen is read out when it appears. */

(() => {
  const made = (name, attributes = {}, ...children) => {
    const node = Object.assign(document.createElement(name), attributes);
    node.append(...children);
    return node;
  };

  function asForm(details, number) {
    const options = details.previousElementSibling;
    const question = options?.previousElementSibling;
    const answers = details.querySelectorAll("ol > li");
    if (options?.tagName !== "OL" || question?.tagName !== "P") return;
    if (options.children.length !== answers.length) return;

    const legend = made("legend", {}, ...question.childNodes);
    const choices = [...options.children].map((option, place) => {
      const button = made("input", { type: "radio", name: `question-${number}`, value: place });
      return made("label", {}, button, made("span", {}, ...option.childNodes));
    });
    const verdict = made("div", { className: "verdict", role: "status" });
    const check = made("button", { type: "submit", textContent: "Check" });
    const form = made("form", { className: "question" });
    form.append(made("fieldset", {}, legend, ...choices), check, verdict);
    form.addEventListener("change", () => verdict.replaceChildren());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const chosen = form.elements[`question-${number}`].value;
      const said = chosen === "" ? made("p", { textContent: "Choose an answer first." })
        : answers[chosen].cloneNode(true);
      verdict.replaceChildren(...(said.tagName === "LI" ? said.childNodes : [said]));
    });
    question.remove();
    options.replaceWith(form);
  }

  document.addEventListener("DOMContentLoaded", () => {
    const folded = document.querySelectorAll("details.answer");
    folded.forEach(asForm);
    // On paper nothing can be opened.
    const closed = [];
    addEventListener("beforeprint", () => {
      for (const one of folded) if (!one.open) { one.open = true; closed.push(one); }
    });
    addEventListener("afterprint", () => closed.splice(0).forEach((one) => { one.open = false; }));
  });
})();
