//! Who may ask for what.
//!
//! | Secret | Is in | Protects against |
//! |---|---|---|
//! | token | the printed URL, once | everybody who has not seen the terminal |
//! | session | a cookie, `HttpOnly` and `SameSite=Strict` | scripts that get at the page's own storage |
//! | key | the page that the token opened, and its storage in the browser; said in a header | cookies belong to a host and not to a port: what listens at another port of the page's address, as all do that listen on 0.0.0.0, is sent the cookie as well |
//!
//! The token becomes the other two and is void. Whatever is asked for beyond a page that says so needs both. And whoever asks:
//!
//! - `Host` is this address and port: a name that somebody else's DNS leads here (rebinding) is not;
//! - `Sec-Fetch-Site`, where a browser says it, is not another site's, nor another port's, but for following the printed link;
//! - a change is a `POST` of JSON with an `Origin` that is `Host`'s.

use std::net::SocketAddr;

use crate::secret::{NoRandom, Secret};

/// The cookie's name.
const COOKIE: &str = "cofferdam";

/// Of a request, what the door looks at.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Head<'a> {
    pub(crate) is_post: bool,
    pub(crate) path: &'a str,
    pub(crate) query: &'a str,
    pub(crate) host: Option<&'a str>,
    pub(crate) origin: Option<&'a str>,
    pub(crate) site: Option<&'a str>,
    pub(crate) cookie: Option<&'a str>,
    pub(crate) key: Option<&'a str>,
    pub(crate) content_type: Option<&'a str>,
}

/// What is asked for by somebody who may.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked<'a> {
    /// The page, for the first time.
    Enter,
    /// The page, again.
    Page,
    Overview,
    Run(Query<'a>),
    /// What a change would be.
    Propose,
    /// A change.
    Allow,
}

/// A run, and what of it is known already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Query<'a> {
    pub(crate) run: &'a str,
    pub(crate) since: u64,
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Another name leads here.
    Host,
    /// Another page asks.
    Site,
    /// The token is no token.
    Token,
    /// It was one.
    Used,
    /// The browser that used it asks with it once more.
    Open,
    /// Nobody who has used a token.
    Session,
    /// Not in the form of a change.
    Form,
    Absent,
    Method,
}

#[derive(Debug)]
pub(crate) struct Door {
    host: String,
    token: Secret,
    is_used: bool,
    session: Secret,
    key: Secret,
}

impl Door {
    /// The door of the page at this address.
    pub(crate) fn new(address: SocketAddr) -> Result<Door, NoRandom> {
        let (token, session, key) = (Secret::new()?, Secret::new()?, Secret::new()?);
        Ok(Door { host: address.to_string(), token, is_used: false, session, key })
    }

    /// What opens the page, once.
    pub(crate) fn token(&self) -> &Secret {
        &self.token
    }

    /// What the page says in a header.
    pub(crate) fn key(&self) -> &Secret {
        &self.key
    }

    /// The header that gives a browser its cookie.
    pub(crate) fn set_cookie(&self) -> String {
        format!("{COOKIE}={}; HttpOnly; SameSite=Strict; Path=/", self.session.reveal())
    }

    /// Whether somebody may have what is asked for. A token that is right is void afterwards.
    pub(crate) fn admit<'a>(&mut self, head: &Head<'a>) -> Result<Asked<'a>, Refused> {
        if head.host != Some(&self.host) {
            return Err(Refused::Host);
        }
        let asked = match (head.path, head.is_post) {
            ("/", false) => return self.admit_page(head),
            ("/api/overview", false) => Asked::Overview,
            ("/api/run", false) => Asked::Run(Query::parse(head.query)),
            ("/api/propose", true) => Asked::Propose,
            ("/api/allow", true) => Asked::Allow,
            ("/" | "/api/overview" | "/api/run" | "/api/propose" | "/api/allow", _) => return Err(Refused::Method),
            _ => return Err(Refused::Absent),
        };
        if head.site.is_some_and(|site| site != "same-origin") {
            return Err(Refused::Site);
        }
        if !self.has_session(head) || !head.key.is_some_and(|key| self.key.is(key)) {
            return Err(Refused::Session);
        }
        if head.is_post {
            if head.origin.and_then(|origin| origin.strip_prefix("http://")) != Some(&self.host) {
                return Err(Refused::Site);
            }
            let is_json = head.content_type.is_some_and(|kind| kind.eq_ignore_ascii_case("application/json"));
            if !is_json {
                return Err(Refused::Form);
            }
        }
        Ok(asked)
    }

    fn admit_page(&mut self, head: &Head<'_>) -> Result<Asked<'static>, Refused> {
        let has_session = self.has_session(head);
        match parameter(head.query, "token") {
            None if has_session => Ok(Asked::Page),
            None => Err(Refused::Session),
            Some(token) if !self.token.is(token) => Err(Refused::Token),
            Some(_) if !self.is_used => {
                self.is_used = true;
                Ok(Asked::Enter)
            }
            Some(_) if has_session => Err(Refused::Open),
            Some(_) => Err(Refused::Used),
        }
    }

    fn has_session(&self, head: &Head<'_>) -> bool {
        let cookies = head.cookie.unwrap_or_default().split(';').filter_map(|cookie| cookie.trim().split_once('='));
        // Whoever serves another port of this host may have set one of the same name: each counts.
        cookies.filter(|(name, _)| *name == COOKIE).any(|(_, value)| self.session.is(value))
    }
}

impl<'a> Query<'a> {
    fn parse(query: &'a str) -> Query<'a> {
        let since = parameter(query, "since").and_then(|since| since.parse().ok()).unwrap_or(0);
        Query { run: parameter(query, "run").unwrap_or_default(), since }
    }
}

/// One word of a query. Ours need no escapes.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').filter_map(|pair| pair.split_once('=')).find(|(word, _)| *word == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "127.93.184.7:4000";

    fn door() -> Door {
        Door::new(HERE.parse().unwrap()).unwrap()
    }

    fn query(door: &Door) -> String {
        format!("token={}", door.token().reveal())
    }

    fn cookie(door: &Door) -> String {
        let set = door.set_cookie();
        set.split(';').next().unwrap().to_owned()
    }

    #[test]
    fn a_token_opens_the_page_once() {
        let mut door = door();
        let query = query(&door);
        let first = Head { path: "/", query: &query, host: Some(HERE), ..Head::default() };
        assert_eq!(door.admit(&first), Ok(Asked::Enter));
        assert_eq!(door.admit(&first), Err(Refused::Used));
        let cookie = format!("other=1; {}", cookie(&door));
        assert_eq!(door.admit(&Head { cookie: Some(&cookie), ..first }), Err(Refused::Open));
        let again = Head { query: "", cookie: Some(&cookie), ..first };
        assert_eq!(door.admit(&again), Ok(Asked::Page));
    }

    #[test]
    fn a_wrong_token_opens_nothing_and_voids_nothing() {
        let mut door = door();
        let right = query(&door);
        let almost = format!("{}0", &right[..right.len() - 1]);
        for query in ["token=", "token=0", "token", "", "x=1", &right[..right.len() - 1], &format!("{right}0")] {
            let head = Head { path: "/", query, host: Some(HERE), ..Head::default() };
            assert!(matches!(door.admit(&head), Err(Refused::Token | Refused::Session)), "{query}");
        }
        if almost != right {
            let head = Head { path: "/", query: &almost, host: Some(HERE), ..Head::default() };
            assert_eq!(door.admit(&head), Err(Refused::Token));
        }
        let head = Head { path: "/", query: &right, host: Some(HERE), ..Head::default() };
        assert_eq!(door.admit(&head), Ok(Asked::Enter));
    }

    #[test]
    fn another_name_that_leads_here_is_refused_whatever_else_is_right() {
        let mut door = door();
        let (query, cookie, key) = (query(&door), cookie(&door), door.key().reveal().to_owned());
        for host in [
            None,
            Some(""),
            Some("127.93.184.7"),
            Some("127.93.184.7:4001"),
            Some("rebound.example:4000"),
            Some("127.93.184.7.rebound.example:4000"),
            Some("127.93.184.7:4000@rebound.example"),
            Some("127.0.0.1:4000"),
            Some("[::1]:4000"),
            Some("[::ffff:127.93.184.7]:4000"),
            Some("localhost:4000"),
            Some("localhost.:4000"),
        ] {
            let head =
                Head { path: "/", query: &query, host, cookie: Some(&cookie), key: Some(&key), ..Head::default() };
            assert_eq!(door.admit(&head), Err(Refused::Host), "{host:?}");
            assert_eq!(door.admit(&Head { path: "/api/overview", ..head }), Err(Refused::Host), "{host:?}");
        }
    }

    #[test]
    fn what_is_shown_needs_the_cookie_and_the_key() {
        let mut door = door();
        let (cookie, key) = (cookie(&door), door.key().reveal().to_owned());
        let head = Head {
            path: "/api/run",
            query: "run=last&since=7",
            host: Some(HERE),
            cookie: Some(&cookie),
            key: Some(&key),
            ..Head::default()
        };
        assert_eq!(door.admit(&head), Ok(Asked::Run(Query { run: "last", since: 7 })));
        for (path, asked) in [("/api/overview", Ok(Asked::Overview)), ("/api/other", Err(Refused::Absent))] {
            assert_eq!(door.admit(&Head { path, ..head }), asked);
        }
        let swapped = cookie.replace(|c: char| c.is_ascii_digit(), "f");
        for refused in [
            Head { cookie: None, ..head },
            Head { key: None, ..head },
            Head { cookie: Some(&swapped), ..head },
            Head { key: Some(""), ..head },
            Head { cookie: Some(&key), key: Some(&cookie), ..head },
        ] {
            assert_eq!(door.admit(&refused), Err(Refused::Session), "{refused:?}");
        }
        // Both, by whoever has them and is another page: of a published port, which is the same site, or of anybody's.
        for site in ["same-site", "cross-site", "none"] {
            assert_eq!(door.admit(&Head { site: Some(site), ..head }), Err(Refused::Site), "{site}");
        }
        assert!(door.admit(&Head { site: Some("same-origin"), ..head }).is_ok());
    }

    #[test]
    fn a_change_comes_from_the_page_itself() {
        let mut door = door();
        let (cookie, key) = (cookie(&door), door.key().reveal().to_owned());
        let head = Head {
            is_post: true,
            path: "/api/allow",
            host: Some(HERE),
            origin: Some("http://127.93.184.7:4000"),
            cookie: Some(&cookie),
            key: Some(&key),
            content_type: Some("application/json"),
            ..Head::default()
        };
        assert_eq!(door.admit(&head), Ok(Asked::Allow));
        for other in [
            None,
            Some("null"),
            Some("http://127.93.184.7:8080"),
            Some("http://127.0.0.1:4000"),
            Some("https://127.93.184.7:4000"),
            Some("http://localhost:4000"),
        ] {
            assert_eq!(door.admit(&Head { origin: other, ..head }), Err(Refused::Site), "{other:?}");
        }
        for kind in [None, Some("text/plain"), Some("application/x-www-form-urlencoded"), Some("multipart/form-data")] {
            assert_eq!(door.admit(&Head { content_type: kind, ..head }), Err(Refused::Form), "{kind:?}");
        }
        assert_eq!(door.admit(&Head { is_post: false, ..head }), Err(Refused::Method));
        assert_eq!(door.admit(&Head { key: None, ..head }), Err(Refused::Session));
        assert_eq!(
            door.admit(&Head { is_post: true, path: "/", host: Some(HERE), ..Head::default() }),
            Err(Refused::Method)
        );
    }

    #[test]
    fn the_cookie_is_for_no_script_and_no_other_site() {
        let set = door().set_cookie();
        assert!(set.starts_with("cofferdam=") && set.ends_with("; HttpOnly; SameSite=Strict; Path=/"), "{set}");
    }
}
