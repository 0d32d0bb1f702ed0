//! What the names pinned to an address come to, for one kind of service.
//!
//! Only a few of the names decide: the one with the first allow rule (and, where it is another, the
//! one with the first that counts at addresses which are not public), the one that is denied last (an address is closed when
//! every name on it is denied), the alias that is denied first, and whether there is more than one name. So a handful of
//! names decides as all of them do, and the handful of two sets of names together is that of their handfuls together. A policy
//! with several layers keeps a handful for each: names beside the handful change nothing.

use cofferdam_model::DomainName;

use crate::PinnedName;
use crate::table::Rank;
use crate::table::names::NameTree;
use crate::table::ports::{Ranks, Service};

/// Which rules that allow a name count at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Counting {
    All,
    /// Those with `allow_private` alone.
    Inside,
}

/// Names on the scales. Of names that weigh the same the one that was added last counts.
#[derive(Debug)]
pub(crate) struct Scales<'a> {
    tree: &'a NameTree,
    service: Service,
    /// The last two names that were asked for themselves.
    asked_for: [Option<&'a PinnedName>; 2],
    allowed: Option<(Rank, &'a PinnedName)>,
    allowed_inside: Option<(Rank, &'a PinnedName)>,
    denied: Option<(Rank, &'a PinnedName)>,
    alias_denied: Option<(Rank, &'a PinnedName)>,
}

impl<'a> Scales<'a> {
    pub(crate) fn new(tree: &'a NameTree, service: Service) -> Scales<'a> {
        Scales {
            tree,
            service,
            asked_for: [None; 2],
            allowed: None,
            allowed_inside: None,
            denied: None,
            alias_denied: None,
        }
    }

    pub(crate) fn add(&mut self, pinned: &'a PinnedName) {
        let Ranks { allow, deny, inside } = self.tree.lookup(&pinned.name, self.service);
        if pinned.alias {
            if deny != Rank::NONE && self.alias_denied.is_none_or(|(rank, _)| deny <= rank) {
                self.alias_denied = Some((deny, pinned));
            }
            return;
        }
        self.asked_for = [Some(pinned), self.asked_for[0]];
        if allow != Rank::NONE && self.allowed.is_none_or(|(rank, _)| allow <= rank) {
            self.allowed = Some((allow, pinned));
        }
        if inside != Rank::NONE && self.allowed_inside.is_none_or(|(rank, _)| inside <= rank) {
            self.allowed_inside = Some((inside, pinned));
        }
        // The rank by which every name is denied is the highest among the names' first denials; a name without one has
        // the highest there is.
        if self.denied.is_none_or(|(rank, _)| deny >= rank) {
            self.denied = Some((deny, pinned));
        }
    }

    /// The first domain rule that matches a flow to an address with these names, and the name that it matched.
    pub(crate) fn first(&self, counting: Counting) -> (Rank, Option<&'a DomainName>) {
        let [_, another] = self.asked_for;
        // An alias belongs to one of the names that led to it, and only with a single name it is known to which.
        let alias_denied = self.alias_denied.filter(|_| another.is_none());
        let allowed = match counting {
            Counting::All => self.allowed,
            Counting::Inside => self.allowed_inside,
        };
        let candidates = [allowed, self.denied, alias_denied];
        let first = candidates.into_iter().flatten().min_by_key(|(rank, _)| *rank);
        first.map_or((Rank::NONE, None), |(rank, pinned)| (rank, Some(&pinned.name)))
    }

    /// The names that decide: as many as it takes, each once.
    fn handful(&self) -> Vec<PinnedName> {
        let deciding = [self.allowed, self.allowed_inside, self.denied, self.alias_denied];
        let deciding = deciding.map(|weighed| weighed.map(|(_, pinned)| pinned));
        let mut names: Vec<PinnedName> = Vec::new();
        for pinned in deciding.into_iter().chain(self.asked_for).flatten() {
            if names.len() < HANDFUL && !names.contains(pinned) {
                names.push(pinned.clone());
            }
        }
        names
    }
}

/// Scales for every layer of a policy.
#[derive(Debug)]
pub(crate) struct LayerScales<'a>(Vec<Scales<'a>>);

impl<'a> LayerScales<'a> {
    pub(crate) fn new(scales: impl Iterator<Item = Scales<'a>>) -> LayerScales<'a> {
        LayerScales(scales.collect())
    }

    pub(crate) fn add(&mut self, pinned: &'a PinnedName) {
        self.0.iter_mut().for_each(|scales| scales.add(pinned));
    }

    /// The names that decide for some layer, each once.
    pub(crate) fn handful(&self) -> Vec<PinnedName> {
        let mut names: Vec<PinnedName> = Vec::new();
        for pinned in self.0.iter().flat_map(Scales::handful) {
            if !names.contains(&pinned) {
                names.push(pinned);
            }
        }
        names
    }
}

/// The four that decide, and two that show that there is more than one.
const HANDFUL: usize = 6;
