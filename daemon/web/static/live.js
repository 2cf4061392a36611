// Keeps the page up to date: asks for it again and swaps the parts that changed, so that focus and scroll stay.
"use strict";
(() => {
  const EVERY_MS = 2000;
  let tag = "";
  let heard = new Date();
  const pulse = document.getElementById("pulse");
  const stale = document.getElementById("stale");

  function show(alive) {
    pulse.className = alive ? "beating" : "silent";
    if (alive) heard = new Date();
    stale.hidden = alive;
    const text = alive ? "" : `The service does not answer. What you see is of ${heard.toLocaleTimeString()}.`;
    if (stale.textContent !== text) stale.textContent = text;
  }

  async function update() {
    if (document.hidden) return;
    const answer = await fetch(location.href, {headers: tag ? {"If-None-Match": tag} : {}, cache: "no-store"});
    show(answer.ok || answer.status === 304);
    if (answer.status !== 200) return;
    tag = answer.headers.get("ETag") || "";
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
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

  if (document.querySelector("[data-live]")) {
    setInterval(() => update().catch(() => show(false)), EVERY_MS);
  }
})();
