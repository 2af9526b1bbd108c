//! Option texts as they were given, each with its source, before they are parsed. Flags beat variables,
//! variables beat defaults.

use std::collections::BTreeMap;
use std::fmt;

use super::options::{OPTIONS, Opt, Takes};

/// Where an option's text comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Default,
    /// A command line flag, named as in the option table.
    Flag,
    /// An environment variable.
    Variable(&'static str),
    /// A key of the CNI network configuration.
    Netconf(String),
    /// A pod's annotation.
    Annotation(String),
    /// A variable of the pod's proxy container.
    ProxyVariable(String),
    /// A field of the pod's proxy container.
    ProxyField(&'static str),
    /// An answer of the node's agent, with the source that it names.
    Agent(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Flag => f.write_str("flag"),
            Origin::Variable(name) => write!(f, "variable {name}"),
            Origin::Netconf(key) => write!(f, "netconf key {key}"),
            Origin::Annotation(name) => write!(f, "annotation {name}"),
            Origin::ProxyVariable(name) => write!(f, "the proxy's variable {name}"),
            Origin::ProxyField(name) => write!(f, "the proxy's {name}"),
            Origin::Agent(source) => f.write_str(source),
        }
    }
}

impl Origin {
    /// What a message calls the option when its text has this origin.
    pub fn name_of(&self, opt: Opt) -> String {
        match self {
            Origin::Flag | Origin::Default => opt.spec().name(),
            other => other.to_string(),
        }
    }
}

/// Option texts with their origins.
#[derive(Debug, Clone, Default)]
pub struct Given {
    options: BTreeMap<Opt, (Origin, String)>,
    envoy_user: Option<String>,
}

/// The environment: a variable's value by its name. Tests hand in a map.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The process's own environment. Nothing outside `config` reads it.
///
/// A variable that is not UTF-8 is passed on with the offending bytes replaced, so
/// that the option's own check refuses it.
pub fn process_environment(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

impl Given {
    /// Everything the environment sets.
    pub fn from_environment(environment: Environment) -> Self {
        let mut given = Self::default();
        for spec in OPTIONS {
            let set = spec.env.iter().find_map(|&name| {
                let value = environment(name)?;
                // Only a list can mean something by being empty.
                let counts = matches!(spec.takes, Takes::List(_)) || !value.is_empty();
                counts.then_some((name, value))
            });
            if let Some((name, value)) = set {
                given.set(spec.opt, Origin::Variable(name), value);
            }
        }
        given.envoy_user = environment("ENVOY_USER").filter(|name| !name.is_empty());
        given
    }

    /// The user the proxy runs as when no uid is given: ENVOY_USER, or its usual name.
    pub fn envoy_user(&self) -> &str {
        self.envoy_user.as_deref().unwrap_or("istio-proxy")
    }

    /// Whether ENVOY_USER names a user.
    pub fn names_envoy_user(&self) -> bool {
        self.envoy_user.is_some()
    }

    /// Sets an option, and replaces an earlier text.
    pub fn set(&mut self, opt: Opt, origin: Origin, text: impl Into<String>) {
        self.options.insert(opt, (origin, text.into()));
    }

    /// The option's text and origin; `None` where only the default applies.
    pub fn get(&self, opt: Opt) -> Option<(&Origin, &str)> {
        self.options.get(&opt).map(|(origin, text)| (origin, text.as_str()))
    }

    /// Everything that was set.
    pub fn iter(&self) -> impl Iterator<Item = (Opt, &Origin, &str)> {
        self.options.iter().map(|(opt, (origin, text))| (*opt, origin, text.as_str()))
    }

    pub fn has(&self, opt: Opt) -> bool {
        self.options.contains_key(&opt)
    }

    /// The option's text and origin, or the table's default.
    pub fn text(&self, opt: Opt) -> (&Origin, &str) {
        self.get(opt).unwrap_or((&Origin::Default, opt.spec().default))
    }
}
