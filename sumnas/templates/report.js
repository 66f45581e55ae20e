// The nearest architecture under the pointer is told below the charts, and marked in every chart.
"use strict";
for (const svg of document.querySelectorAll("svg.chart")) {
  const marks = [...svg.querySelectorAll("circle")];
  const told = svg.closest("section").querySelector(".told");
  const at = (event) => {
    const box = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    let best = null, least = 20 * 20;
    for (const mark of marks) {
      const distance = (mark.cx.baseVal.value - x) ** 2 + (mark.cy.baseVal.value - y) ** 2;
      if (distance < least) [best, least] = [mark, distance];
    }
    if (!best) return;
    for (const mark of document.querySelectorAll("circle.on")) mark.classList.remove("on");
    for (const mark of document.querySelectorAll(`circle[data-i="${best.dataset.i}"]`)) mark.classList.add("on");
    told.textContent = best.querySelector("title").textContent;
  };
  svg.addEventListener("pointermove", at);
  svg.addEventListener("click", at);
}
