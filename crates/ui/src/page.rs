//! What is sent as HTML: the page, and those that say why there is none.

use crate::door::Refused;

const PAGE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// What a page may do: nothing but run what came with it, and ask where it came from.
pub(crate) fn policy(nonce: &str) -> String {
    format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

/// The page, with the key for who has opened it with the token.
pub(crate) fn page(nonce: &str, key: Option<&str>) -> String {
    // Nonce and key are digits; style and script are ours.
    let key = key.map(|key| format!("<meta name=\"key\" content=\"{key}\">")).unwrap_or_default();
    PAGE.replace("NONCE", nonce).replace("<!--KEY-->", &key).replace("/*STYLE*/", STYLE).replace("/*SCRIPT*/", SCRIPT)
}

/// A page that says why there is none, and what to do.
pub(crate) fn refusal(nonce: &str, refused: Refused) -> String {
    let (title, text) = words(refused);
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title} – Cofferdam</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><link rel=\"icon\" href=\"data:,\"><style nonce=\"{nonce}\">\
         :root{{color-scheme:light dark}}body{{font:16px/1.5 system-ui,sans-serif;max-width:34em;margin:15vh auto;padding:0 1em}}</style>\
         <main><h1>{title}</h1><p>{text}</p></main></html>"
    )
}

/// The same in words, for programs as well.
pub(crate) fn words(refused: Refused) -> (&'static str, &'static str) {
    match refused {
        Refused::Host => (
            "Not by this name",
            "This page answers to the address in the link that cofferdam ui has printed, and to no other name that leads here.",
        ),
        Refused::Site => ("Another page asks", "Only the page itself may ask for this."),
        Refused::Token => (
            "This link is not right",
            "Its token is not the one that cofferdam ui has printed. Copy the whole link from the terminal.",
        ),
        Refused::Used => (
            "This link was used",
            "A link opens the page once, in one browser. If that was not you, end cofferdam ui at once. \
             To open the page here, end cofferdam ui (Ctrl-C) and start it again: it prints a new link.",
        ),
        Refused::Open => (
            "The page is open already",
            "This link was used in this browser: go to the window or tab that it opened. If that is closed, \
             end cofferdam ui (Ctrl-C) and start it again: it prints a new link.",
        ),
        Refused::Session => (
            "Not without the link",
            "This page opens with the link that cofferdam ui has printed. If it was used and its window is closed, \
             end cofferdam ui (Ctrl-C) and start it again: it prints a new link.",
        ),
        Refused::Form => ("Not in this form", "A change is sent as application/json."),
        Refused::Absent => ("Nothing here", "There is one page, at /."),
        Refused::Method => ("Not in this way", "The page is got, and a change is posted."),
    }
}
