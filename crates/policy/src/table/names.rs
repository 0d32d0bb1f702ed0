use std::collections::BTreeMap;
use std::sync::Arc;

use cofferdam_model::{DomainName, Rule};

use crate::table::Rank;
use crate::table::ports::{Borders, Ranks, Service, ServiceClass, Table};

/// The rules whose destination is a name or a suffix: a trie over labels from right to left.
#[derive(Debug, Default)]
pub(crate) struct NameTree {
    nodes: Box<[NameNode]>,
    borders: Borders,
}

/// Which names a rule at a node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The name itself.
    Exact,
    /// The name and every name below it.
    Suffix,
    /// Every name below it.
    Below,
}

#[derive(Debug, Default)]
struct NameNode {
    children: BTreeMap<Box<str>, u32>,
    /// Rules that match the name of this node.
    here: Option<Arc<NameTable>>,
    /// Rules that match every name below this node; often the same.
    below: Option<Arc<NameTable>>,
}

#[derive(Debug)]
struct NameTable {
    table: Table,
    /// The first rule whatever its protocols and ports, which do not apply when a name is resolved.
    first: Rank,
}

impl NameTree {
    pub(crate) fn new(rules: &[(Rank, &Rule, &DomainName, Reach)]) -> NameTree {
        if rules.is_empty() {
            return NameTree::default();
        }
        let mut nodes = vec![NameNode::default()];
        let mut at_node: Vec<(u32, Rank, &Rule, Reach)> = Vec::with_capacity(rules.len());
        for (rank, rule, name, reach) in rules {
            if let Some(id) = insert(&mut nodes, name) {
                at_node.push((id, *rank, *rule, *reach));
            }
        }
        at_node.sort_by_key(|(id, ..)| *id);
        for rules in at_node.chunk_by(|(one, ..), (other, ..)| one == other) {
            if let Some(node) = rules.first().and_then(|(id, ..)| node_mut(&mut nodes, *id)) {
                node.here = NameTable::new(rules, |reach| reach != Reach::Below);
                node.below = if rules.iter().all(|(.., reach)| *reach == Reach::Suffix) {
                    node.here.clone()
                } else {
                    NameTable::new(rules, |reach| reach != Reach::Exact)
                };
            }
        }
        let borders = Borders::new(rules.iter().map(|(_, rule, ..)| *rule));
        NameTree { nodes: nodes.into_boxed_slice(), borders }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The class of a service: no rule here treats two of one class differently.
    pub(crate) fn class(&self, service: Service) -> ServiceClass {
        self.borders.class(service)
    }

    /// The first rules that match `name` for a flow.
    pub(crate) fn lookup(&self, name: &DomainName, service: Service) -> Ranks {
        let mut ranks = Ranks::NONE;
        self.visit(name, |table| ranks = ranks.min(table.table.lookup(service)));
        ranks
    }

    /// The first rule that matches `name`, whatever its protocols and ports.
    pub(crate) fn first(&self, name: &DomainName) -> Rank {
        let mut rank = Rank::NONE;
        self.visit(name, |table| rank = rank.min(table.first));
        rank
    }

    fn visit(&self, name: &DomainName, mut found: impl FnMut(&NameTable)) {
        let Some(mut node) = self.nodes.first() else { return };
        let mut labels = name.labels().rev().peekable();
        while let Some(label) = labels.next() {
            let Some(id) = node.children.get(label) else { return };
            let Some(child) = usize::try_from(*id).ok().and_then(|id| self.nodes.get(id)) else { return };
            node = child;
            let table = if labels.peek().is_none() { &node.here } else { &node.below };
            if let Some(table) = table {
                found(table);
            }
        }
    }
}

impl NameTable {
    fn new(rules: &[(u32, Rank, &Rule, Reach)], wanted: impl Fn(Reach) -> bool) -> Option<Arc<NameTable>> {
        let rules: Vec<(Rank, &Rule)> =
            rules.iter().filter(|(.., reach)| wanted(*reach)).map(|(_, rank, rule, _)| (*rank, *rule)).collect();
        let first = rules.iter().map(|(rank, _)| *rank).min()?;
        Some(Arc::new(NameTable { table: Table::new(&rules), first }))
    }
}

/// The node for `name`, made with all above it where missing.
fn insert(nodes: &mut Vec<NameNode>, name: &DomainName) -> Option<u32> {
    let mut at = 0;
    for label in name.labels().rev() {
        let next = u32::try_from(nodes.len()).ok()?;
        let children = &mut node_mut(nodes, at)?.children;
        at = match children.get(label) {
            Some(id) => *id,
            None => {
                children.insert(label.into(), next);
                nodes.push(NameNode::default());
                next
            }
        };
    }
    Some(at)
}

fn node_mut(nodes: &mut [NameNode], id: u32) -> Option<&mut NameNode> {
    nodes.get_mut(usize::try_from(id).ok()?)
}
