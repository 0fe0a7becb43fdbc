// @ts-check
// Follow the answer while the reader is at its end; never pull a reader who has scrolled away.

const NEAR_END_PX = 40;
const DRAG_PX = 3;

/** Owns the scrolling of one element. */
export class Follower {
  following = true;
  /**
   * @param {HTMLElement} box what scrolls
   * @param {HTMLElement} content what grows in it
   * @param {() => void} onChange
   */
  constructor(box, content, onChange) {
    this.box = box;
    this.onChange = onChange;
    this.lastTop = 0;
    let touchY = 0;
    box.addEventListener("wheel", (event) => event.deltaY < 0 && this.release(), { passive: true });
    box.addEventListener("touchstart", (event) => (touchY = event.touches[0].clientY), { passive: true });
    box.addEventListener("touchmove", (event) => event.touches[0].clientY - touchY > DRAG_PX && this.release(), {
      passive: true,
    });
    box.addEventListener("keydown", (event) => ["PageUp", "ArrowUp", "Home"].includes(event.key) && this.release());
    box.addEventListener("scroll", () => this.scrolled(), { passive: true });
    new ResizeObserver(() => this.grown()).observe(content);
    new ResizeObserver(() => this.grown()).observe(box);
  }

  distance() {
    return this.box.scrollHeight - this.box.clientHeight - this.box.scrollTop;
  }

  /** The reader wants to stay where they are. */
  release() {
    if (this.distance() <= 0 && this.box.scrollTop <= 0) return; // nothing to scroll yet
    this.set(false);
  }

  scrolled() {
    const moved = this.box.scrollTop - this.lastTop; // 0 where the scrolling was our own
    this.lastTop = this.box.scrollTop;
    if (moved > 0 && this.distance() <= NEAR_END_PX) this.set(true);
    else if (moved < -DRAG_PX && this.distance() > NEAR_END_PX) this.set(false); // the scroll bar was dragged
    this.onChange();
  }

  grown() {
    if (this.following) this.box.scrollTop = this.box.scrollHeight;
    this.lastTop = this.box.scrollTop;
    this.onChange();
  }

  /** Go to the end and stay there. */
  toEnd() {
    this.set(true);
    this.grown();
  }

  /** @param {boolean} following */
  set(following) {
    if (this.following === following) return;
    this.following = following;
    this.onChange();
  }
}
