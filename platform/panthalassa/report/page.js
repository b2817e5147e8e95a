"use strict";
// The page's own few lines: light and dark, files, and touch. Bokeh draws and zooms.
(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const plots = () => (window.Bokeh?.documents ?? []).flatMap((found) => found.roots());

  function repaint() {
    for (const plot of plots()) plot.change.emit();
  }

  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
    root.dataset.theme = dark ? "light" : "dark";
    repaint();
  });
  system.addEventListener("change", repaint);

  // A finger that drags shall scroll the page: on touch, zooming is chosen in the toolbar first.
  function leaveDragsAlone() {
    if (plots().length === 0) return void setTimeout(leaveDragsAlone, 50);
    for (const plot of plots()) {
      for (const tool of plot.toolbar.tools) if (tool.type === "BoxZoomTool") tool.active = false;
    }
  }
  if (matchMedia("(pointer: coarse)").matches && document.querySelector(".plot")) leaveDragsAlone();

  async function unpack(base64) {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }

  for (const button of document.querySelectorAll("button.csv")) {
    button.addEventListener("click", async () => {
      const text = await unpack(document.getElementById(button.dataset.from).textContent);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
      link.download = button.dataset.file;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    });
  }
})();
