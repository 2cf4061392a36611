// Keeps the page up to date: asks for it again and swaps the parts that changed, so that focus and scroll stay.
// On the worklist it also looks for what is typed, by the same form that works without a script.
"use strict";
(() => {
  const EVERY_MS = 2000;
  const TYPING_MS = 180;
  let tag = "";
  let heard = new Date();
  let asked = 0;
  const pulse = document.getElementById("pulse");
  const stale = document.getElementById("stale");
  const search = document.getElementById("search");
  const field = document.getElementById("find");
  const list = document.querySelector("[data-worklist]");
  let page = list ? list.dataset.page : "1";

  function show(alive) {
    pulse.className = alive ? "beating" : "silent";
    if (alive) heard = new Date();
    stale.hidden = alive;
    const text = alive ? "" : `The service does not answer. What you see is of ${heard.toLocaleTimeString()}.`;
    if (stale.textContent !== text) stale.textContent = text;
  }

  function ask() {
    if (list && (field.value.trim() || location.pathname === search.getAttribute("action"))) {
      const fields = new URLSearchParams(new FormData(search));
      fields.set("page", page);
      return fetch(search.action, {method: "POST", body: fields, cache: "no-store"});
    }
    return fetch(location.href, {headers: tag ? {"If-None-Match": tag} : {}, cache: "no-store"});
  }

  async function update() {
    if (document.hidden) return;
    const mine = ++asked;
    const answer = await ask();
    if (mine !== asked) return;  // more was typed meanwhile
    show(answer.ok || answer.status === 304);
    if (answer.status !== 200) return;
    tag = answer.headers.get("ETag") || "";
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (mine !== asked) return;
    if (fresh.body.dataset.revision !== document.body.dataset.revision && !typing()) {
      location.reload();
      return;
    }
    for (const old of document.querySelectorAll("[data-live]")) swap(old, fresh.getElementById(old.id));
  }

  function swap(old, fresh) {
    if (!fresh || fresh.innerHTML === old.innerHTML) return;
    const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
    old.replaceChildren(...fresh.childNodes);
    if (focused) document.getElementById(focused)?.focus({preventScroll: true});
  }

  function typing() {
    const field = document.activeElement;
    return field && ["TEXTAREA", "INPUT"].includes(field.tagName) && field.closest("form.review");
  }

  if (list && field) {
    let waiting = 0;
    field.addEventListener("input", () => {
      clearTimeout(waiting);
      page = "1";
      tag = "";
      waiting = setTimeout(() => update().catch(() => show(false)), TYPING_MS);
    });
  }
  if (document.querySelector("[data-live]")) {
    setInterval(() => update().catch(() => show(false)), EVERY_MS);
  }
})();
