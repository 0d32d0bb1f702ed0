//! The configured resolvers and how they have been doing.
//!
//! They are asked in the configured order, but one that seems dead is asked after all others for a while: it then costs
//! one query its waiting time, not every query. An upstream seems dead when its socket fails, or when it stayed silent
//! while it was waited for and has not been heard of since it was asked. One that answers other queries meanwhile is
//! alive, however long a single name takes it.

use std::time::Duration;

use cofferdam_model::Time;

use crate::Upstream;

/// How long a dead upstream goes to the end of the line. Long enough that it costs little, short enough that a resolver
/// that came back is used again before anybody wonders.
const DEAD_FOR: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Upstreams {
    upstreams: Vec<Known>,
}

#[derive(Debug)]
struct Known {
    upstream: Upstream,
    heard: Option<Time>,
    dead_until: Option<Time>,
}

/// Where one of the configured resolvers stands in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Index(pub(crate) usize);

impl Upstreams {
    pub(crate) fn new(upstreams: &[Upstream]) -> Upstreams {
        let known = |upstream: &Upstream| Known { upstream: *upstream, heard: None, dead_until: None };
        Upstreams { upstreams: upstreams.iter().map(known).collect() }
    }

    /// All of them, in the order in which they should be asked.
    pub(crate) fn in_order(&self, now: Time) -> Vec<(Index, Upstream)> {
        let mut order: Vec<_> = self.upstreams.iter().enumerate().collect();
        // Stable: within the living and within the dead the configured order stays.
        order.sort_by_key(|(_, upstream)| upstream.dead_until.is_some_and(|until| until > now));
        order.into_iter().map(|(index, known)| (Index(index), known.upstream)).collect()
    }

    /// It answered.
    pub(crate) fn heard(&mut self, now: Time, index: Index) {
        if let Some(upstream) = self.upstreams.get_mut(index.0) {
            upstream.heard = Some(now);
            upstream.dead_until = None;
        }
    }

    /// Its socket failed.
    pub(crate) fn failed(&mut self, now: Time, index: Index) {
        if let Some(upstream) = self.upstreams.get_mut(index.0) {
            upstream.dead_until = Some(now + DEAD_FOR);
        }
    }

    /// It was asked at `asked` and waited for in vain.
    pub(crate) fn silent(&mut self, now: Time, index: Index, asked: Time) {
        let heard_since = |upstream: &Known| upstream.heard.is_some_and(|heard| heard >= asked);
        if let Some(upstream) = self.upstreams.get_mut(index.0).filter(|upstream| !heard_since(upstream)) {
            upstream.dead_until = Some(now + DEAD_FOR);
        }
    }
}
