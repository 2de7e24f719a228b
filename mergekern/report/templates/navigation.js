"use strict";
// The list of sections, and the address of the page, which can name a pair: #pair=first,second.

const menu = byId("menu");

function openMenu(open) {
  menu.setAttribute("aria-expanded", open);
}

menu.addEventListener("click", () => openMenu(menu.getAttribute("aria-expanded") !== "true"));
byId("navigation").addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  openMenu(false);
  menu.focus();
});
byId("sections").addEventListener("click", () => openMenu(false));

const links = new Map([...document.querySelectorAll("#sections a")].map((link) => [link.hash.slice(1), link]));

function markSection(id) {
  for (const [other, link] of links) {
    if (other === id) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  byId("here").textContent = links.get(id).textContent;
}

// The section that crosses the middle of the window is the one that is read.
const reader = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) if (isIntersecting) markSection(target.id);
}, { rootMargin: "-49% 0px -50% 0px" });
for (const id of links.keys()) reader.observe(byId(id));
markSection("answer");

const pairHash = () => `#pair=${[state.a, state.b].map((model) => encodeURIComponent(page.models[model])).join(",")}`;

function followHash() {
  const message = byId("pair-message");
  message.hidden = true;
  if (!location.hash.startsWith("#pair=")) return;
  let names = [];
  try {
    names = location.hash.slice("#pair=".length).split(",").map(decodeURIComponent);
  } catch {
    // A percent sign that encodes nothing: no name has it, and the message below says so.
  }
  const [a, b] = names.map((name) => page.models.indexOf(name));
  byId("pair").scrollIntoView();
  if (names.length === 2 && a >= 0 && b >= 0 && a !== b) {
    show({ a, b });
    return;
  }
  message.textContent = "The address of this page names a pair that is not in the table; another one is shown.";
  message.hidden = false;
}

followers.push((changes) => {
  if (!("a" in changes || "b" in changes)) return;
  byId("pair-message").hidden = true;
  history.replaceState(null, "", pairHash());
});
byId("pair-link").addEventListener("click", async ({ target }) => {
  await copy(`${location.href.split("#")[0]}${pairHash()}`, "The link to this pair");
  target.focus();
  copied(target);
});
window.addEventListener("hashchange", followHash);
followHash();
