"use strict";
for (const figure of document.querySelectorAll(".frames")) {
  const slider = figure.querySelector("input");
  const frames = figure.querySelectorAll("li");
  const show = () => {
    frames.forEach((frame, k) => frame.classList.toggle("shown", k === slider.valueAsNumber));
    slider.setAttribute("aria-valuetext", frames[slider.valueAsNumber].querySelector("p").textContent);
  };
  slider.addEventListener("input", show);
  slider.hidden = frames.length < 2;
  figure.classList.add("live");
  show();
}
