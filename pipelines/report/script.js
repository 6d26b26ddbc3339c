"use strict";
(() => {
  const form = document.getElementById("filter");
  const items = [...document.querySelectorAll("[data-filter]")].map((item) => [item, item.textContent.toLowerCase()]);
  const query = document.getElementById("query");
  const shown = document.getElementById("shown");
  const apply = () => {
    const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
    let videos = 0;
    for (const [item, text] of items) {
      item.hidden = !words.every((word) => text.includes(word));
      if (!item.hidden && item.tagName === "TR") videos += 1;
    }
    shown.textContent = words.length ? `${videos} found` : "";
  };
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  query.addEventListener("input", apply);
})();
