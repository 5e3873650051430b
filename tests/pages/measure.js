// What a reader's eyes meet in a report page: an object of numbers, for the tests.
(() => {
  const channels = colour => colour.match(/[\d.]+/g).map(Number);
  const luminance = colour => {
    const [r, g, b] = channels(colour).slice(0, 3)
      .map(x => x / 255).map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor, [, , , alpha = 1] = channels(colour);
      if (alpha > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const all = selector => [...document.querySelectorAll(selector)];
  const words = all("h1, h2, h3, li, th, td, dt, dd, figcaption, pre").filter(one => one.textContent.trim());
  const drawn = all(".plot svg text").filter(one => one.textContent.trim() && one.getClientRects().length
    && !one.closest(".modebar, .hoverlayer"));
  const wider = all("body *").filter(one => !one.closest("svg, .plot") && one.scrollWidth > one.clientWidth + 1
    && getComputedStyle(one).display !== "inline");
  const mute = one => !(one.matches('.scroll[tabindex="0"][role="region"]') && one.getAttribute("aria-label"));
  return {
    page_width: document.scrollingElement.scrollWidth,
    window_width: innerWidth,
    background: luminance(behind(document.body)),
    n_words: words.length,
    words_contrast: Math.min(...words.map(one => contrast(getComputedStyle(one).color, behind(one)))),
    words_size: Math.min(...words.map(one => parseFloat(getComputedStyle(one).fontSize))),
    n_drawn: drawn.length,
    drawn_contrast: Math.min(...drawn.map(one => contrast(getComputedStyle(one).fill, behind(one.closest(".plot"))))),
    drawn_size: Math.min(...drawn.map(one => parseFloat(getComputedStyle(one).fontSize))),
    n_plots: all(".plot").length,
    n_plots_drawn: all(".plot .main-svg").filter(one => one.getBoundingClientRect().height > 80)
      .map(one => one.closest(".plot")).filter((one, at, whole) => whole.indexOf(one) === at).length,
    n_scrolling: wider.filter(one => !mute(one)).length,
    hidden: wider.filter(one => mute(one) && !one.closest(".scroll")).map(one => one.outerHTML.slice(0, 200)),
  };
})()
