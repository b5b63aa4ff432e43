// Renews a part of the page: requests it again and again, and replaces it where it changed.
"use strict";

const part = document.getElementById("live");
const state = document.getElementById("live-state");
const settled = state.textContent;

async function renew() {
  try {
    const answer = await fetch(part.dataset.live, { headers: { Accept: "application/json" }, cache: "no-store" });
    if (answer.status === 401) {
      window.location.reload();
      return;
    }
    if (!answer.ok) throw new Error(String(answer.status));
    const text = await answer.text();
    if (text !== renew.last) {
      const focused = part.contains(document.activeElement) ? document.activeElement.id : "";
      part.innerHTML = text; // from our own server, escaped there
      if (focused) document.getElementById(focused)?.focus();
      renew.last = text;
    }
    show(settled, false);
  } catch {
    show("The server does not answer: this page may be out of date.", true);
  }
  window.setTimeout(renew, 1000 * Number(part.dataset.seconds));
}

function show(text, bad) {
  if (state.textContent !== text) state.textContent = text;
  state.classList.toggle("bad", bad);
}

for (const form of document.querySelectorAll("form[data-submit-on-change]")) {
  form.addEventListener("change", () => form.requestSubmit());
}
window.setTimeout(renew, 1000 * Number(part.dataset.seconds));
