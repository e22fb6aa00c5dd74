// The web page as a person uses it, in headless Chromium, against a real server on the built-in
// model. `cargo xtask page-test` runs it: node test.mjs KILN BROWSER OUT SAMPLE.png

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import fs from "node:fs";
import { createRequire } from "node:module";
import os from "node:os";
import path from "node:path";
import { chromium } from "playwright-core";

const [kiln, executablePath, out, sample] = process.argv.slice(2);
const axe = fs.readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const DESCRIPTION = /small red star at the top center/;
const KEY = "sesame";

/** Starts a server; resolves to its URL when it serves. */
async function serve(...flags) {
  const child = spawn(kiln, ["serve", "builtin", "--host", "127.0.0.1", "--port", "0", ...flags],
    { stdio: ["ignore", "pipe", "ignore"] });
  const url = await new Promise((resolve, reject) => {
    let text = "";
    child.stdout.on("data", (data) => {
      text += data;
      const found = text.match(/http:\/\/[\d.:]+/);
      if (found) resolve(found[0]);
    });
    child.on("exit", (code) => reject(new Error(`kiln serve ended with ${code}`)));
  });
  return { url, end: () => child.kill("SIGKILL") };
}

const profile = fs.mkdtempSync(path.join(os.tmpdir(), "kiln-page-"));
const browser = await chromium.launchPersistentContext(profile, {
  executablePath,
  headless: true,
  viewport: { width: 1280, height: 860 },
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
browser.setDefaultTimeout(30_000);
const servers = [];
let failed = 0;

/** A fresh page; what it asks elsewhere and what it throws is a failure. */
async function open(url) {
  const page = await browser.newPage();
  page.faults = [];
  page.on("pageerror", (error) => page.faults.push(error.message));
  page.on("console", (m) => {
    if (m.type() === "error" && !/status of 4\d\d/.test(m.text())) page.faults.push(m.text());
  });
  page.on("request", (request) => {
    if (!/^(data|blob):/.test(request.url()) && !request.url().startsWith(url)) page.faults.push(request.url());
  });
  await page.goto(url);
  return page;
}

async function check(name, url, steps) {
  const page = await open(url);
  try {
    await steps(page);
    assert.deepEqual(page.faults, []);
    console.log(`ok    ${name}`);
  } catch (error) {
    failed += 1;
    await page.screenshot({ path: path.join(out, "failed.png") });
    console.log(`FAIL  ${name}: ${error.message}`);
  }
  await page.close();
}

/** Drops files as a person does: the event carries them. */
async function drop(page, ...files) {
  const carried = files.map((file) => [path.basename(file), fs.readFileSync(file).toString("base64")]);
  const transfer = await page.evaluateHandle((carried) => {
    const transfer = new DataTransfer();
    for (const [name, base64] of carried) {
      const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
      transfer.items.add(new File([bytes], name, { type: "image/png" }));
    }
    return transfer;
  }, carried);
  await page.dispatchEvent("body", "dragenter", { dataTransfer: transfer });
  assert.ok(await page.isVisible("#drop"), "nothing says that one may drop");
  await page.dispatchEvent("body", "drop", { dataTransfer: transfer });
  assert.ok(!(await page.isVisible("#drop")), "what says so stays");
}

async function ask(page, question) {
  await page.fill("#question", question);
  await page.keyboard.press("Enter");
}

/** The text of the last answer, when it is whole. */
async function answer(page, count = 1) {
  await page.waitForFunction((n) => document.querySelectorAll(".answer").length === n
    && !document.querySelector(".answer.busy"), count);
  return page.locator(".answer .words").last().innerText();
}

async function accessible(page, name) {
  await page.evaluate(axe);
  const found = await page.evaluate(() => axe.run());
  const words = found.violations.map((v) => `${v.id}: ${v.nodes.map((n) => n.html.slice(0, 80)).join(", ")}`);
  assert.deepEqual(words, [], name);
}

try {
  const server = await serve();
  servers.push(server);

  await check("a dropped picture is shown as the model sees it, and asked about", server.url, async (page) => {
    await page.waitForFunction(() => document.getElementById("model").textContent.includes("1024"));
    await page.screenshot({ path: path.join(out, "welcome.png") });
    await drop(page, sample);
    await page.waitForSelector(".sheet img");
    assert.match(await page.innerText(".count"), /^64\s+tokens: one for each patch/);
    assert.match(await page.innerText("#tiles"), /1 view of 112 × 112, 8 × 8 patches/);
    assert.ok(await page.evaluate(() => document.querySelector(".sheet img").naturalWidth > 200));
    assert.equal(await page.locator(".bar .item").count(), 1);
    // How many pieces the answer came in.
    await page.evaluate(() => {
      window.changes = 0;
      new MutationObserver((records) => { window.changes += records.length; })
        .observe(document.getElementById("log"), { subtree: true, childList: true, characterData: true });
    });
    await ask(page, "Describe the picture.");
    assert.match(await answer(page), DESCRIPTION);
    assert.ok(await page.evaluate(() => window.changes > 15), "the answer came at once");
    assert.match(await page.innerText(".took"), /first token after .* tokens\/s/);
    const figures = await page.innerText("#figures");
    for (const figure of ["Time to first token", "Speed", "New tokens", "Prompt tokens", "of pictures\n64"]) {
      assert.ok(figures.includes(figure), `${figure}: ${figures}`);
    }
    assert.match(await page.innerText("#status"), DESCRIPTION, "what a screen reader says");
    await page.screenshot({ path: path.join(out, "answer.png") });
    await ask(page, "Which shape is yellow?");
    assert.match(await answer(page, 2), /circle/);
    assert.equal(await page.locator(".asked .thumb").count(), 1);
    await accessible(page, "light");
    await page.emulateMedia({ colorScheme: "dark" });
    const dark = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    assert.ok(dark.match(/\d+/g).every((c) => Number(c) < 60), `dark is ${dark}`);
    await accessible(page, "dark");
    await page.screenshot({ path: path.join(out, "dark.png") });
    await page.setViewportSize({ width: 390, height: 800 });
    const wide = await page.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(wide <= 390, `a phone must scroll sideways: ${wide}`);
    await page.screenshot({ path: path.join(out, "phone.png"), fullPage: true });
  });

  await check("the keyboard alone is enough", server.url, async (page) => {
    await page.waitForFunction(() => document.getElementById("model").textContent.includes("1024"));
    const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.textContent.trim());
    const order = [];
    for (let i = 0; i < 12; i += 1) {
      await page.keyboard.press("Tab");
      order.push(await focused());
    }
    const wanted = ["Skip to the question", "new", "log", "sample", "question", "pick", "send"];
    assert.deepEqual(order.filter((id) => wanted.includes(id)).slice(0, wanted.length), wanted);
    await page.focus("#sample");
    await page.keyboard.press("Enter");
    await page.waitForSelector(".sheet img");
    await page.waitForFunction(() => document.activeElement.id === "question");
    await page.keyboard.press("Control+A");
    await page.keyboard.type("What does the text say?");
    await page.keyboard.press("Enter");
    assert.match(await answer(page), /XEO/);
    await page.waitForFunction(() => document.activeElement.id === "question");
    await page.focus(".sheet");
    await page.keyboard.press("Enter");
    assert.ok(await page.isVisible("#zoom-picture"), "the sheet is not enlarged");
    await page.keyboard.press("Escape");
    assert.ok(!(await page.isVisible("#zoom-picture")));
    await page.focus("#new");
    await page.keyboard.press("Enter");
    assert.equal(await page.locator(".turn").count(), 0);
    assert.ok(await page.isVisible("#seen-none"));
  });

  await check("pictures are pasted, picked and removed; a second one begins anew", server.url, async (page) => {
    await page.waitForFunction(() => document.getElementById("model").textContent.includes("1 picture"));
    await page.setInputFiles("#files", sample);
    await page.waitForSelector("#pending .away");
    await page.click("#pending .away");
    assert.equal(await page.locator("#pending li").count(), 0);
    const base64 = fs.readFileSync(sample).toString("base64");
    const paste = () => page.evaluate((base64) => {
      const transfer = new DataTransfer();
      const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
      transfer.items.add(new File([bytes], "pasted.png", { type: "image/png" }));
      document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }));
    }, base64);
    await paste();
    await page.waitForSelector("#pending .thumb");
    await ask(page, "Which shape is yellow?");
    assert.match(await answer(page), /circle/);
    await paste();
    await page.waitForSelector("#pending .thumb");
    await ask(page, "Where is the purple triangle?");
    assert.match(await answer(page, 2), /bottom right/);
    assert.match(await page.innerText(".ended"), /1 picture in one/);
  });

  await check("an answer is stopped, and what came of it stays", server.url, async (page) => {
    await page.waitForFunction(() => document.getElementById("model").textContent.includes("1024"));
    // Slower than the model, so that there is time to stop: the stream is real, its pieces wait.
    await page.evaluate(() => {
      const fetched = window.fetch;
      window.fetch = async (...args) => {
        const response = await fetched(...args);
        if (!String(args[0]).includes("chat")) return response;
        const { signal } = args[1];
        const slow = new TransformStream({
          async transform(piece, out) {
            const lines = new TextDecoder().decode(piece).split(/(?<=\n)/);
            for (const line of lines) {
              await new Promise((resolve) => setTimeout(resolve, 60));
              signal.throwIfAborted();
              out.enqueue(new TextEncoder().encode(line));
            }
          },
        });
        return new Response(response.body.pipeThrough(slow, { signal }), response);
      };
    });
    await page.click("#sample");
    await page.waitForSelector(".sheet img");
    await ask(page, "Describe the picture.");
    await page.waitForFunction(() => document.querySelector(".answer .words")?.textContent.length > 5);
    await page.click("#stop");
    const text = await answer(page);
    assert.ok(text.length > 5 && text.length < 100, text);
    assert.match(await page.innerText(".took"), /^stopped/);
    assert.ok(await page.isVisible("#send"));
  });

  await check("errors are said in words, and the question is not lost", server.url, async (page) => {
    await page.waitForFunction(() => document.getElementById("model").textContent.includes("1024"));
    const broken = path.join(out, "broken.png");
    fs.writeFileSync(broken, fs.readFileSync(sample).subarray(0, 300));
    await page.setInputFiles("#files", broken);
    await page.waitForSelector("#seen-facts .trouble");
    await ask(page, "What is it?");
    await page.waitForSelector("#trouble:not([hidden])");
    assert.match(await page.innerText("#trouble"), /image|picture/i);
    assert.equal(await page.inputValue("#question"), "What is it?");
    assert.equal(await page.locator("#pending li").count(), 1);
    await page.screenshot({ path: path.join(out, "error.png") });
    await accessible(page, "an error");
    await page.setInputFiles("#files", { name: "a.txt", mimeType: "text/plain", buffer: Buffer.from("x") });
    await page.waitForFunction(() => document.getElementById("trouble").textContent.includes("no picture"));
  });

  const keyed = await serve("--api-key", KEY);
  servers.push(keyed);
  await check("a server that wants a key is given one", keyed.url, async (page) => {
    await page.waitForSelector("#key-form:not([hidden])");
    assert.match(await page.innerText("#trouble"), /API key/);
    await page.fill("#key", "wrong");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.getElementById("trouble").textContent.includes("not accept"));
    await page.fill("#key", KEY);
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.getElementById("model").textContent.includes("1024"));
    assert.ok(!(await page.isVisible("#key-form")));
    await page.click("#sample");
    await page.waitForSelector(".sheet img");
    await ask(page, "Which shape is yellow?");
    assert.match(await answer(page), /circle/);
  });

  const gone = await serve();
  servers.push(gone);
  await check("a server that is gone is said to be", gone.url, async (page) => {
    await page.waitForFunction(() => document.getElementById("model").textContent.includes("1024"));
    gone.end();
    await ask(page, "Hello?");
    await page.waitForFunction(() => document.getElementById("trouble").textContent.includes("can't be reached"));
    // The browser says so, too.
    page.faults = page.faults.filter((fault) => !/ERR_CONNECTION/.test(fault));
  });
} finally {
  servers.forEach((server) => server.end());
  await browser.close();
  fs.rmSync(profile, { recursive: true, force: true });
}
console.log(failed ? `${failed} checks failed; the page as it was: ${out}/failed.png` : `all checks passed; pictures of the page: ${out}`);
process.exit(failed ? 1 : 0);
