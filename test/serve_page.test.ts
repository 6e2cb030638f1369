// The page of `switchyard serve` in a real browser: a conversation, experts of its tokens, keys, and accessibility.
// needs: cpu, browser
// rotates with: engine/server/

import t from "tap";
import {
  accessibilityProblems,
  openBrowser,
  openPage,
  skipWithoutBrowser,
  texts,
} from "./helpers/browser.ts";
import { temporaryFolder } from "./helpers/cli.ts";
import { chatCheckpoint, startServer } from "./helpers/serve.ts";

const OPTIONS = { skip: skipWithoutBrowser };
const browser = skipWithoutBrowser ? undefined : await openBrowser();
t.teardown(() => browser?.close());

t.test("a conversation and its tokens", OPTIONS, async (t) => {
  const server = await startServer(
    await chatCheckpoint(temporaryFolder(t)),
    ...["--api-key", "one"],
  );
  t.teardown(() => server.stop());
  const { page, complaints } = await openPage(browser!, server.address, {
    dark: true,
  });
  const send = async (text: string) => {
    await page.fill("textarea", text);
    await page.click("button[type=submit]");
  };
  const waitForStatus = async (text: string) => {
    await page.locator("[role=status]", { hasText: text }).waitFor();
  };
  await send("Who is the fox?");
  await waitForStatus("the API key is missing or wrong");
  await page.fill("[name=key]", "one");
  await page.fill("[name=tokens]", "12");
  await page.fill("[name=temperature]", "0");
  await send("Who is the fox?");
  await waitForStatus("The answer is complete.");
  const { choices } = await (await server.post("/v1/chat/completions", {
    // The rejected message is not part of the conversation.
    messages: [{ role: "user", content: "Who is the fox?" }],
    max_tokens: 12,
    temperature: 0,
    routed_experts: true,
  }, {
    headers: {
      "content-type": "application/json",
      "authorization": "Bearer one",
    },
  })).json() as {
    choices: {
      message: { content: string };
      routed_experts: number[][][];
    }[];
  };
  const { message, routed_experts: experts } = choices[0]!;
  const shown = (await page.locator(".token").allTextContents()).join("");
  t.equal(shown, message.content);
  const rows = () => texts(page, "tbody td:nth-of-type(1)");
  t.strictSame(await rows(), experts.at(-1)!.map((one) => one.join(", ")));
  await page.locator("input[type=range]").focus();
  await page.keyboard.press("Home");
  t.strictSame(await rows(), experts[0]!.map((one) => one.join(", ")));
  t.strictSame(await accessibilityProblems(page), []);
  t.strictSame(
    complaints.filter((text) => !text.includes("401")),
    [],
    "no other errors",
  );
  await page.close();
});
