// Scrolls through the slices of a job: a slider, arrow keys, the wheel; the overlay's strength; the plane.
"use strict";
(() => {
  const viewer = document.querySelector(".viewer");
  if (!viewer) return;
  const job = viewer.dataset.job;
  const positions = JSON.parse(viewer.dataset.positions);
  const point = viewer.dataset.point.split(",").map(Number);  // the voxel that all planes go through
  const axes = {};
  for (const link of viewer.querySelectorAll("[data-axis]")) axes[link.dataset.plane] = Number(link.dataset.axis);
  const flair = document.getElementById("flair");
  const map = document.getElementById("map");
  const slider = document.getElementById("slice");
  const where = document.getElementById("position");
  const opacity = document.getElementById("opacity");
  const pictures = document.getElementById("pictures");
  const kept = new Map();  // address -> blob address: pictures are never stored by the browser itself
  const MOST_KEPT = 600;
  let asked = 0;

  function address(kind, plane, index) {
    return `/jobs/${job}/${kind}/${plane}/${index}.png`;
  }

  async function picture(url) {
    if (!kept.has(url)) {
      if (kept.size >= MOST_KEPT) {
        const [oldest, blob] = kept.entries().next().value;
        kept.delete(oldest);
        URL.revokeObjectURL(await blob);
      }
      kept.set(url, fetch(url).then((answer) => {
        if (!answer.ok) throw new Error(`${answer.status}`);
        return answer.blob();
      }).then((blob) => URL.createObjectURL(blob)));
    }
    return kept.get(url);
  }

  async function show() {
    const mine = ++asked;
    const plane = slider.dataset.plane, index = Number(slider.value);
    point[axes[plane]] = index;
    where.textContent = `${index + 1}/${positions[plane].length}, ${positions[plane][index]}`;
    const wanted = [picture(address("slices", plane, index))];
    if (map) wanted.push(picture(address("saliency", plane, index)));
    const sources = await Promise.all(wanted);
    if (mine !== asked) return;  // a later slice was asked for meanwhile
    flair.src = sources[0];
    flair.alt = `FLAIR, ${plane} slice ${index + 1} at ${positions[plane][index]}`;
    if (map) map.src = sources[1];
    for (const next of [index + 1, index - 1, index + 2, index - 2]) {
      if (next < 0 || next >= positions[plane].length) continue;
      picture(address("slices", plane, next));
      if (map) picture(address("saliency", plane, next));
    }
  }

  function step(by) {
    slider.value = Number(slider.value) + by;
    show();
  }

  slider.addEventListener("input", show);
  pictures.addEventListener("wheel", (event) => {
    event.preventDefault();
    step(Math.sign(event.deltaY));
  }, {passive: false});
  for (const link of viewer.querySelectorAll("[data-plane]:not(input)")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const plane = link.dataset.plane;
      slider.dataset.plane = plane;
      slider.max = positions[plane].length - 1;
      slider.value = point[axes[plane]];
      for (const other of viewer.querySelectorAll(".planes a")) other.toggleAttribute("aria-current", other === link);
      show();
    });
  }
  const looks = ["brightness", "contrast"].map((name) => document.getElementById(name));
  function light() {
    flair.style.filter = looks.map((look) => `${look.id}(${look.value}%)`).join(" ");
    for (const look of looks) document.getElementById(`${look.id}-value`).textContent = `${look.value} %`;
  }
  for (const look of looks) {
    look.closest(".scripted").style.display = "grid";
    look.addEventListener("input", light);
  }
  if (opacity) {
    const set = () => {
      map.style.opacity = opacity.value / 100;
      document.getElementById("opacity-value").textContent = `${opacity.value} %`;
    };
    opacity.addEventListener("input", set);
    set();
    let before = opacity.value;
    document.addEventListener("keydown", (event) => {
      if (event.key.toLowerCase() !== "o" || event.ctrlKey || event.metaKey || event.altKey) return;
      if (["TEXTAREA", "INPUT"].includes(event.target.tagName) && event.target.type !== "range") return;
      if (opacity.value === "0") opacity.value = before;
      else { before = opacity.value; opacity.value = "0"; }
      set();
    });
  }
})();
