// @ts-check
// The keyboard: Enter that respects input methods, and the shortcuts.

const AFTER_COMPOSITION_MS = 10;
let compositionEnd = -Infinity;
addEventListener("compositionend", () => (compositionEnd = performance.now()), true);

/**
 * Whether this key belongs to an input method (Japanese, Chinese, Korean), not to us. Safari ends the composition
 * first and then sends Enter with isComposing false, hence keyCode 229 and the few milliseconds.
 * @param {KeyboardEvent} event
 */
export function isComposing(event) {
  return event.isComposing || event.keyCode === 229 || performance.now() - compositionEnd < AFTER_COMPOSITION_MS;
}

/**
 * Whether this key sends the text: Enter, but not Shift+Enter, and not on a virtual keyboard.
 * @param {KeyboardEvent} event
 */
export function sends(event) {
  if (event.key !== "Enter" || event.shiftKey || event.altKey || isComposing(event)) return false;
  if (event.ctrlKey || event.metaKey) return true;
  return !byControl() && !matchMedia("(hover: none) and (pointer: coarse)").matches;
}

/** Whether the reader chose Ctrl+Enter, so that Enter alone breaks the line. */
const byControl = () => localStorage.getItem("sendKey") === "ctrl";

/** What can be pressed, and the key of its words. */
export const shortcuts = () => [
  [byControl() ? "Ctrl+Enter" : "Enter", "keys.send"],
  [byControl() ? "Enter" : "Shift+Enter", "keys.break"],
  ["/", "keys.prompts"],
  ["Esc", "keys.stop"],
  ["↑", "keys.editLast"],
  ["Ctrl+Shift+O", "keys.new"],
  ["Ctrl+K", "keys.search"],
  ["Ctrl+B", "keys.sidebar"],
  ["Ctrl+/", "keys.help"],
];

/**
 * Run the action of a shortcut. Ctrl is Cmd on a Mac.
 * @param {{new: () => void, search: () => void, sidebar: () => void, help: () => void, escape: () => void}} actions
 */
export function listenToKeys(actions) {
  addEventListener("keydown", (event) => {
    if (isComposing(event)) return;
    const control = event.ctrlKey || event.metaKey;
    const key = event.key.toLowerCase();
    let action;
    if (control && event.shiftKey && key === "o") action = actions.new;
    else if (control && !event.shiftKey && key === "k") action = actions.search;
    else if (control && !event.shiftKey && key === "b") action = actions.sidebar;
    else if (control && key === "/") action = actions.help;
    else if (key === "escape" && !document.querySelector("dialog[open]")) action = actions.escape;
    if (!action) return;
    event.preventDefault();
    action();
  });
}
