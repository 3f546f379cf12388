// Keeps the live part of a page up to date; it holds nothing that can have the focus.
setInterval(async () => {
  const live = document.querySelector("#live[data-running]");
  if (!live) return;
  const answer = await fetch(location.href);
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("#live");
  if (fresh) live.replaceWith(document.adoptNode(fresh));
}, 2000);
