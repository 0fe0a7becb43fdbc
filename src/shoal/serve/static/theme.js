// @ts-check
// Light, dark, or as the system has it.

/** @param {string} theme "system", "light" or "dark" */
export function setTheme(theme) {
  localStorage.setItem("theme", theme);
  applyTheme();
}

export function applyTheme() {
  const theme = localStorage.getItem("theme") ?? "system";
  document.documentElement.style.colorScheme = theme === "system" ? "" : theme;
}
