// The page around KtlogVerify: what the reader gives it, what it remembers, what it says.
"use strict";
(() => {
  const K = KtlogVerify, MAX_AGE_SECONDS = 3600, KEPT_HEADS = 50, LIMIT = 64 << 20;
  const $ = (id) => document.getElementById(id);
  const now = () => Math.floor(Date.now() / 1000);
  // What is kept may be damaged, or another page's: what has not this shape is not there.
  const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
  const SHAPES = {
    policy: (value) => isObject(value) && typeof value.text === "string" && Number.isSafeInteger(value.since) && Math.abs(value.since) < 1e12,
    configs: (value) => isObject(value) && Object.values(value).every((one) => typeof one === "string"),
    heads: (value) => isObject(value) && Object.values(value).every((of) => isObject(of)
      && Object.entries(of).every(([size, kept]) => /^[0-9]{1,19}$/.test(size) && isObject(kept) && typeof kept.note === "string")),
  };
  const store = {
    // A browser may refuse to remember anything, from a file above all.
    read(key) {
      let found = null;
      try { found = JSON.parse(localStorage.getItem(`ktlog/${key}`)); } catch { /* nothing, or damaged */ }
      return SHAPES[key](found) ? found : key === "policy" ? null : {};
    },
    write(key, value) { try { localStorage.setItem(`ktlog/${key}`, JSON.stringify(value)); return true; } catch { return false; } },
    clear() { try { Object.keys(localStorage).filter((key) => key.startsWith("ktlog/")).forEach((key) => localStorage.removeItem(key)); } catch { /* nothing kept */ } },
  };
  const PICTURES = {
    ok: '<circle cx="12" cy="12" r="10"/><path d="M7 12.5l3.5 3.5L17 9"/>', warn: '<path d="M12 2.5L22 21H2z"/><path d="M12 9v6M12 18v.5"/>',
    bad: '<circle cx="12" cy="12" r="10"/><path d="M8 8l8 8M16 8l-8 8"/>', none: '<circle cx="12" cy="12" r="10" stroke-dasharray="4 3"/>',
  };
  const MARKS = { ok: "✓", warn: "!", bad: "✗", none: "–" };
  const element = (tag, text, attributes = {}) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const ago = (seconds) => (seconds < 120 ? `${seconds} seconds ago` : seconds < 7200 ? `${Math.round(seconds / 60)} minutes ago` : `${Math.round(seconds / 3600)} hours ago`);

  function show(state, word, sentence, checks = [], more = []) {
    const box = $("verdict"), head = element("p", undefined, { class: "word" }), list = element("ul", undefined, { class: "checks" });
    head.innerHTML = `<svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="2" aria-hidden="true">${PICTURES[state]}</svg>`;
    head.append(element("span", word));
    for (const [mark, text] of checks) list.append(element("li", text, { "data-mark": MARKS[mark] }));
    box.className = state;
    box.dataset.state = state;
    box.replaceChildren(head, element("p", sentence), ...(checks.length ? [list] : []), ...more);
  }

  // -- what is remembered

  function tellRemembered() {
    const pinned = store.read("policy"), heads = store.read("heads");
    const logs = Object.entries(heads).map(([origin, of]) => `${origin}: up to ${Object.keys(of).map(BigInt).reduce((a, b) => (a > b ? a : b), 0n)} entries`);
    $("remembered").textContent = pinned === null ? "Nothing is remembered here." :
      `Remembered since ${new Date(1000 * pinned.since).toISOString().slice(0, 10)}.${logs.length ? ` Checkpoints seen: ${logs.join("; ")}.` : ""}`;
  }

  const encoded = (bytes) => K.encodeBase64(bytes);
  // Compare with every checkpoint of this log that was believed here before, and remember this one. Only what the
  // remembered policy vouched for is remembered: what somebody else's keys signed must not speak against the log.
  function remember(opened, pinned, checks) {
    if (!pinned) {
      checks.push(["none", "Whether it goes on from what you saw before: this policy is not one that this browser remembers."]);
      return;
    }
    const heads = store.read("heads"), { origin, size } = opened.checkpoint, known = heads[origin] ?? {};
    let newest = null;
    for (const kept of Object.values(known)) {
      const bytes = K.decodeBase64(kept.note), before = K.parseCheckpoint(K.parseNote(bytes, broken).text, broken);
      try {
        if (K.compare(before, opened.checkpoint) === "newer" && (newest === null || before.size > newest)) newest = before.size;
      } catch (error) {
        if (error.name === "TwoRoots") error.notes = [bytes, opened.bytes];
        throw error;
      }
    }
    checks.push(opened.checkpoint.size in known ? ["ok", "It is a checkpoint that this browser has seen before."] : newest === null
      ? ["none", "Whether it goes on from what you saw before: this browser had seen no checkpoint of this log."]
      : ["none", `Whether it begins with the ${newest} entries that you saw before: no proof of that was given. Its size did not fall.`]);
    known[size] = { note: encoded(opened.bytes), seen: now() };
    const sizes = Object.keys(known).sort((a, b) => (BigInt(a) < BigInt(b) ? -1 : 1));
    while (sizes.length > KEPT_HEADS) delete known[sizes.shift()];
    store.write("heads", { ...heads, [origin]: known });
    tellRemembered();
  }
  const broken = (message) => { throw new K.Refusal("Invalid", "BadMemory", `what this browser remembers is damaged: ${message}. Forget everything, and ask who else uses it`); };

  // -- checking

  // Everything that the reader has filled in, as it is at the press of a button.
  function inputs() {
    const policy = $("policy").value.replace(/\r\n/g, "\n").replace(/([^\n])$/, "$1\n");
    return { policy, pinned: store.read("policy")?.text === policy, actor: $("actor").value.trim(), log: $("log").value.trim().replace(/\/+$/, ""), pasted: $("paste").value };
  }

  async function gather(files, pasted) {
    const given = { bundle: null, checkpoint: null, proof: null, entry: null };
    const parts = [...files];
    const take = (kind, bytes) => {
      if (given[kind] !== null) throw new K.Refusal("Invalid", "TwoOfAKind", `there are two files that could be the ${kind}: give one`);
      given[kind] = bytes;
    };
    if (pasted.trim() !== "") parts.push(new Blob([pasted.replace(/\r\n/g, "\n").replace(/\n*$/, "\n")]));
    for (const part of parts) {
      if (part.size > LIMIT) throw new K.Refusal("Invalid", "TooLarge", "a file is larger than anything that is checked here");
      const bytes = new Uint8Array(await part.arrayBuffer()), start = new TextDecoder().decode(bytes.slice(0, 32));
      if (start.startsWith("ktlog-bundle/")) take("bundle", bytes);
      else if (start.startsWith("c2sp.org/tlog-proof@")) take("proof", bytes);
      else if (new TextDecoder().decode(bytes).includes("\n\n— ")) take("checkpoint", bytes);
      else take("entry", bytes);
    }
    return given;
  }

  function cosignedBy(opened) {
    const names = [...new Set(opened.cosigned.map(({ vkey }) => vkey.name))];
    return [
      ["ok", `Signed by the log ${opened.checkpoint.origin}, with ${opened.log.length === 1 ? "a key" : `${opened.log.length} keys`} that you pinned.`],
      ["ok", `Cosigned by ${names.join(", ")}: enough for your policy, ${ago(now() - Number(opened.asOf))}.`],
    ];
  }

  // A handle, or a slip in an address, proves nothing wrong: it is no failure.
  const WHOM = "Name an actor, such as https://example.social/users/alice, in exactly its server's form.";
  async function check(given, { policy: source, pinned, actor, log }, say) {
    const checks = [];
    if (source.trim() === "") return say("none", "Not checked", "Name whom you trust first: without a policy there is no verdict.");
    if (!given.bundle && !given.checkpoint && !given.proof) return say("none", "Not checked", "Give a lookup bundle, a checkpoint or a .tlog-proof.");
    if (given.proof && (given.bundle || given.checkpoint)) return say("none", "Not checked", "A .tlog-proof stands alone: give either that with its entry, or the others.");
    if (given.entry && !given.proof) return say("none", "Not checked", "One of the files is none of what is checked here.");
    if (actor !== "" && !given.bundle) return say("none", "Not checked", "About an actor only a lookup bundle says something. Empty the actor's field to check the rest.");
    if (actor !== "" && !K.isActorId(actor)) return say("none", "Not checked", WHOM);
    const policy = await K.parsePolicy(source);
    const bundle = given.bundle === null ? null : K.parseBundle(given.bundle);
    if (given.proof !== null) {
      if (given.entry === null) return say("none", "Not checked", "A .tlog-proof is about an entry: give the entry's file too.");
      const opened = await K.checkProof(policy, given.proof, given.entry, now());
      checks.push(...cosignedBy(opened), ["ok", `The entry is number ${opened.index} of ${opened.checkpoint.size}.`]);
      remember(opened, pinned, checks);
      K.checkFresh(opened, now(), MAX_AGE_SECONDS);
      return say("ok", "Verified: an entry", `It is entry ${opened.index} of ${opened.checkpoint.origin}, and your cosigners saw the same log. Whose it is, this does not say.`, checks);
    }
    const note = given.checkpoint ?? bundle.checkpoint;
    if (note === null) return say("none", "Not checked", "A bundle goes with the checkpoint of its own size: give that too.");
    const opened = await K.openCheckpoint(policy, note, now());
    checks.push(...cosignedBy(opened));
    remember(opened, pinned, checks);
    K.checkFresh(opened, now(), MAX_AGE_SECONDS);
    if (bundle === null) return say("ok", "Verified: a checkpoint", `${opened.checkpoint.origin} has ${opened.checkpoint.size} entries, and your cosigners saw the same ones.`, checks);
    if (actor === "") return say("none", "Not checked", "Say which actor the bundle is about: its own word for that counts for nothing.", checks);
    // Which log serves an actor is for the reader to say: where there are several, the sender of a bundle would choose.
    const maps = new Set(policy.logs.map(({ vkey }) => vkey.name).filter((name) => name.endsWith("/map")));
    if (maps.size > 1) {
      const chosen = `${log.replace(/^https?:\/\//, "")}/map`;
      if (!maps.has(chosen)) return say("none", "Not checked", "Your policy names the maps of several logs: write the address of the one that serves this actor into the log's field.");
      if (bundle.origin !== chosen) throw new K.Refusal("Invalid", "WrongLog", `the bundle is of ${bundle.origin}, and not of ${chosen}`);
    }
    const configs = store.read("configs"), answer = await K.checkBundle(bundle, opened, actor, { now: now(), maxAge: MAX_AGE_SECONDS });
    const config = encoded(answer.leaf.config), before = configs[bundle.origin];
    if (pinned && before !== undefined && before !== config) throw new K.Refusal("Invalid", "WrongConfig", "the map follows another configuration than the one that this browser knows");
    if (pinned) store.write("configs", { ...configs, [bundle.origin]: config });
    checks.push(["ok", `The answer is in the newest map, made ${ago(now() - Number(answer.leaf.time))} from ${answer.leaf.inputSize} entries.`]);
    return tell(answer, checks, say);
  }

  const STATUS = { 1: "active", 2: "burned down", 3: "all keys revoked by a token", 4: "moved away" };
  function tell(answer, checks, say) {
    const who = element("p");
    who.append(element("bdi", answer.actorId, { class: "mono" }), ` in the log ${answer.origin}`);
    if (answer.pending) checks.push(["warn", "Newer messages wait to be taken into the map and are not checked here. One may withdraw a key: ask again in some minutes, and use no key until then."]);
    const word = (what) => (answer.pending ? `Verified, but newer messages wait: ${what}` : `Verified: ${what}`), state = answer.pending ? "warn" : "ok";
    if (answer.outcome === "never-enrolled") return say(state, word("never enrolled"), "This actor has never been in this log. Nobody can have a key for them here.", checks, [who]);
    if (answer.outcome === "erased") return say(state, word("erased"), "The log knew this actor and erased them. Treat them as a stranger if they come back.", checks, [who]);
    const more = answer.keys.map((key) => {
      const block = element("details", undefined, answer.keys.length === 1 ? { open: "" } : {});
      block.append(element("summary", `Key of entry ${key.leafIndex}`), element("p", `Fingerprint ${K.hex(key.hash).match(/.{8}/g).join(" ")}`, { class: "mono" }),
        element("p", `Key id ${key.keyId}`, { class: "mono" }), element("p", key.text, { class: "mono" }));
      return block;
    });
    checks.push(["ok", `These are all the keys: ${answer.keys.length}. Version ${answer.version}, generation ${answer.generation}, ${STATUS[answer.status]}${answer.fireproof ? ", fireproof" : ""}.`]);
    if (answer.generation > 1) checks.push(["warn", `This actor began anew ${answer.generation - 1} ${answer.generation === 2 ? "time" : "times"}, with no key vouching for the next. Compare fingerprints with the person.`]);
    checks.push(["none", "The messages behind the keys: not checked here."]);
    const count = answer.keys.length === 0 ? "no keys" : answer.keys.length === 1 ? "one key and no other" : `${answer.keys.length} keys and no others`;
    return say(state, word("present"), `This actor has ${count}.`, checks, [who, ...more]);
  }

  const WORDS = { Stale: ["warn", "Stale"], PolicyUnmet: ["warn", "Not enough cosigners"], Forked: ["bad", "FAILED: the log lied"], Unreachable: ["none", "Not checked"] };
  let turn = 0;
  // One verdict at a time: what an earlier press brings when a later one was made is not shown.
  async function guarded(work) {
    const mine = ++turn, button = document.activeElement;
    const say = (...words) => { if (mine === turn) show(...words); };
    show("none", "Checking…", "");
    $("verdict").dataset.state = "checking";
    try {
      if (globalThis.crypto?.subtle === undefined) return say("none", "Not checked", "This browser offers no SHA-256 here: open the page over https, or from your disk.");
      await work(say);
    } catch (error) {
      if (!(error instanceof K.Refusal)) {
        const lacks = error.name === "NotSupportedError";
        return say("none", "Not checked", lacks ? "This browser cannot check Ed25519 signatures: use a newer one, or ktlog verify." : `Something went wrong in this page: ${error.message}`);
      }
      const [state, word] = error.name === "UnsafePolicy" ? ["bad", "Your policy is unsafe"] : error.name === "BadPolicy" ? ["bad", "Your policy cannot be read"] : WORDS[error.kind] ?? ["bad", "FAILED"];
      const more = error.notes === undefined ? [] : [saver(error.notes)];
      const advice = { Forked: " Keep both checkpoints and show them to others.", Invalid: " Do not use these keys.", Stale: " It convicts nobody: try again in some minutes.",
        PolicyUnmet: " The log's own signature holds, but too few others stand behind it." }[error.name === "UnsafePolicy" || error.name === "BadPolicy" ? "" : error.kind] ?? "";
      say(state, word, `${error.name}: ${error.message}.${advice}`, [], more);
    } finally {
      button?.focus?.();
    }
    return undefined;
  }

  function saver(notes) {
    const link = element("a", "Save both checkpoints", { download: "two-checkpoints.txt" });
    link.href = URL.createObjectURL(new Blob([notes[0], "\n----\n", notes[1]], { type: "text/plain" }));
    return link;
  }

  async function ask(given, say) {
    const { log: url, actor } = given;
    if (!/^https?:\/\/[^/?#]+$/.test(url)) return say("none", "Not checked", "Give the log's address, like https://keys.example.com.");
    if (!K.isActorId(actor)) return say("none", "Not checked", WHOM);
    const target = `${url}/map/bundle/${encodeURIComponent(actor)}?checkpoint=true&aux=true`;
    let answer;
    try {
      answer = await fetch(target, { credentials: "omit", cache: "no-store", redirect: "error", referrerPolicy: "no-referrer" });
    } catch {
      throw new K.Refusal("Unreachable", "Refused", `${url} did not answer this page`);
    }
    if (!answer.ok) throw new K.Refusal("Unreachable", "BadStatus", `${url} answered ${answer.status}`);
    const bundle = new Uint8Array(await answer.arrayBuffer());
    return check({ bundle, checkpoint: null, proof: null, entry: null }, given, say);
  }

  // -- the page

  const here = location.protocol === "file:" ? "a file on your disk" : location.host;
  $("origin").textContent = `The code of this page came from ${here}.`;
  if (location.protocol.startsWith("http")) $("log").value = location.origin;
  const pinned = store.read("policy");
  if (pinned !== null) $("policy").value = pinned.text;
  const wanted = new URLSearchParams(location.hash.slice(1)).get("actor");
  if (wanted !== null) $("actor").value = wanted;
  tellRemembered();
  const nothing = () => { turn++; show("none", "Not checked", "Nothing was checked yet."); };
  nothing();
  for (const id of ["policy", "actor", "paste", "log", "files"]) $(id).addEventListener("input", nothing);
  $("pin").addEventListener("click", () => guarded(async (say) => {
    const { policy: text } = inputs();
    await K.parsePolicy(text);
    // What another policy vouched for is forgotten with it.
    if (store.read("policy")?.text !== text) store.clear();
    const kept = store.write("policy", { text, since: now() });
    tellRemembered();
    say("none", kept ? "Remembered" : "Not remembered", kept ? "From now on checkpoints that you check are remembered too, and compared." : "This browser keeps nothing here.");
  }));
  $("forget").addEventListener("click", () => { turn++; store.clear(); tellRemembered(); show("none", "Forgotten", "This browser remembers nothing any more."); });
  const checkFiles = (files) => { const given = inputs(); guarded(async (say) => check(await gather(files, given.pasted), given, say)); };
  $("check").addEventListener("click", () => checkFiles($("files").files));
  $("ask").addEventListener("click", () => { const given = inputs(); guarded((say) => ask(given, say)); });
  const drop = $("drop");
  for (const kind of ["dragover", "dragenter"]) drop.addEventListener(kind, (event) => { event.preventDefault(); drop.className = "over"; });
  drop.addEventListener("dragleave", () => { drop.className = ""; });
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.className = "";
    $("files").files = event.dataTransfer.files;
    checkFiles(event.dataTransfer.files);
  });
})();
