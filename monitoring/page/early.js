"use strict";
// Before the first paint, so that a dark page does not flash white.
(() => {
  const kept = (name) => { try { return localStorage.getItem(name); } catch { return null; } };
  const theme = kept("theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  const language = kept("language") || (navigator.languages || [navigator.language]).find((each) => /^(zh|en)\b/i.test(each)) || "en";
  document.documentElement.lang = /^zh/i.test(language) ? "zh" : "en";
})();
