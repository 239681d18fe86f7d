// Keeps the page up to date: fetches it again and replaces what has changed.
"use strict";
(() => {
  const every = 2000;
  const live = document.getElementById("live");
  let seen = Date.now();
  live.hidden = false;

  // busy reports whether someone is at work in a part: has selected text in it.
  const busy = (part) => {
    const s = getSelection();
    return !s.isCollapsed && part.contains(s.anchorNode);
  };

  const replace = (old, now) => {
    if (old.outerHTML === now.outerHTML || busy(old)) return;
    if (old.getAttribute("role") === "status") { // in place, so that it is read out
      old.className = now.className;
      if (old.textContent !== now.textContent) old.textContent = now.textContent;
      return;
    }
    for (const d of old.querySelectorAll("details[data-keep][open]")) {
      const same = now.querySelector(`details[data-keep="${d.dataset.keep}"]`);
      if (same) same.open = true;
    }
    const all = "a, summary, [tabindex]";
    const focus = [...old.querySelectorAll(all)].indexOf(document.activeElement);
    const scrolled = [...old.querySelectorAll(".scroll")].map((e) => e.scrollLeft);
    old.replaceWith(now);
    now.querySelectorAll(".scroll").forEach((e, i) => { e.scrollLeft = scrolled[i] || 0; });
    if (focus >= 0) now.querySelectorAll(all)[focus]?.focus({ preventScroll: true });
  };

  const refresh = async () => {
    const answer = await fetch(location.href, {
      headers: { Accept: "text/html" }, cache: "no-store", signal: AbortSignal.timeout(10000),
    });
    if (!answer.ok) throw new Error(`HTTP status ${answer.status}`);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const parts = page.querySelectorAll("main > [id]");
    if (!parts.length) throw new Error("the answer is another page; reload to sign in again");
    document.title = page.title;
    for (const now of parts) {
      const old = document.getElementById(now.id);
      if (old) replace(old, document.adoptNode(now));
    }
  };

  const tick = async () => {
    if (!document.hidden) {
      try {
        await refresh();
        seen = Date.now();
        document.body.classList.remove("stale");
        live.textContent = "live";
      } catch (e) {
        document.body.classList.add("stale");
        live.textContent = `no news for ${Math.round((Date.now() - seen) / 1000)} s: ${e.message}`;
      }
    }
    setTimeout(tick, every);
  };
  live.textContent = "live";
  setTimeout(tick, every);
})();
