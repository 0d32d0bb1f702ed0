use cofferdam_model::{
    Action, Classifier, Destination, Direction, DomainName, Group, PolicyConfig, Protocol, RuleText,
};

use crate::{Denial, Facts, NameVerdict, Permit, Reason, RuleRef, Verdict, Warning};

/// A compiled policy.
#[derive(Debug)]
pub struct Policy {
    config: PolicyConfig,
    classifier: Classifier,
}

impl Policy {
    /// Compiles a validated configuration. Total: there is no configuration that does not compile.
    #[must_use]
    pub fn compile(config: &PolicyConfig, classifier: Classifier) -> Policy {
        Policy { config: config.clone(), classifier }
    }

    /// Whether the flow may pass.
    #[must_use]
    pub fn check(&self, facts: &Facts<'_>) -> Verdict {
        let group = self.classifier.classify(facts.peer);
        Verdict::Deny(Denial { reason: Reason { rule: RuleRef::Default(facts.direction), group, name: None } })
    }

    /// Whether `name` may be asked for, by a query that came over `transport`.
    #[must_use]
    pub fn check_name(&self, name: &DomainName, transport: &Facts<'_>) -> NameVerdict {
        let _ = (name, transport);
        NameVerdict::Deny(Reason { rule: RuleRef::Default(Direction::Egress), group: Group::Host, name: None })
    }

    /// What this policy takes addresses for.
    #[must_use]
    pub fn classifier(&self) -> &Classifier {
        &self.classifier
    }

    /// A rule as text, for events.
    #[must_use]
    pub fn rule_text(&self, rule: RuleRef) -> RuleText {
        let _ = rule;
        RuleText { index: None, text: String::new() }
    }

    /// Rules that have no effect or contradict.
    #[must_use]
    pub fn warnings(config: &PolicyConfig) -> Vec<Warning> {
        let _ = config;
        Vec::new()
    }

    /// Whether any rule names a domain.
    #[must_use]
    pub fn uses_names(&self) -> bool {
        self.config
            .rules
            .iter()
            .any(|rule| matches!(rule.destination, Destination::Domain(_) | Destination::Suffix { .. }))
    }
}
