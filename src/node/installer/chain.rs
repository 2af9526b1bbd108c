//! Editing a network configuration list (CNI specification, section 1, "Network configuration format"):
//! pure functions from the text of a file to the text of a file. Other plugins keep their text letter by
//! letter, and their order.

use std::fmt;

use indexmap::IndexMap;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::cni::protocol::CniVersion;

/// The plugin's name: the `type` of its entry, and the file name of its binary.
pub const TYPE: &str = "podweir";

/// Plugins of other meshes that also ask for the last place in the list. They change
/// neither interfaces nor addresses, so our entry works in front of them as well, and two
/// agents that both insist on the very last place would rewrite the file for ever.
const MAY_FOLLOW: [&str; 4] = ["istio-cni", "linkerd-cni", "kuma-cni", "consul-cni"];

/// Why a file is not one that our entry can be added to. The file is left as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ChainError {
    #[error("it is no JSON object (line {line}, column {column})")]
    NotJson { line: usize, column: usize },
    #[error("its key \"{key}\" is {problem}")]
    Key { key: &'static str, problem: &'static str },
    #[error(
        "its cniVersion {found} is older than 0.3.0, in which plugins cannot be chained; raise it to {}",
        chained()
    )]
    TooOld { found: String },
    #[error(
        "its cniVersion {found:?} is not one that this podweir speaks, and its plugin would fail for every pod; write {} there, or install a podweir that speaks it",
        chained()
    )]
    NotSpoken { found: String },
}

impl ChainError {
    /// Whether a runtime cannot use the file either, so that no pod starts.
    pub(super) fn stops_pods(&self) -> bool {
        matches!(self, Self::NotJson { .. } | Self::Key { .. })
    }
}

/// The versions of the specification in which our entry can be chained, in words.
fn chained() -> String {
    let names: Vec<&str> = CniVersion::chained().map(CniVersion::name).collect();
    match names.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} or {last}", others.join(", ")),
        _ => names.concat(),
    }
}

/// The format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `.conflist`: a list of plugins.
    List,
    /// `.conf` and `.json`: a single plugin (deprecated, and still in use).
    Single,
}

/// The state of our entry in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EntryState {
    /// The list has no entry of ours.
    Absent,
    /// The list has our entry, with the right content, after all plugins that have to be before it.
    Effective,
    /// The list has an entry of ours with other content, or several entries of ours.
    Different,
    /// The list has our entry, and these plugins are after it that have to be before it.
    Displaced { behind: Vec<String> },
}

impl fmt::Display for EntryState {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("the entry is not in the list"),
            Self::Effective => f.write_str("the entry is in the list"),
            Self::Different => f.write_str("the entry in the list has other content than it should"),
            Self::Displaced { behind } => write!(f, "the plugins {} stand behind the entry", behind.join(", ")),
        }
    }
}

/// A plugin of a list: its `type`, and its text as it stands in the file.
#[derive(Debug, Clone)]
struct Plugin {
    kind: String,
    text: Box<RawValue>,
}

/// A network configuration list.
#[derive(Debug, Clone)]
pub(super) struct Conflist {
    /// The keys of the list but `plugins`, as they stand in the file.
    keys: IndexMap<String, Box<RawValue>>,
    /// The position of `plugins` among the keys.
    plugins_at: usize,
    plugins: Vec<Plugin>,
}

type Keys = IndexMap<String, Box<RawValue>>;

fn object(text: &[u8]) -> Result<Keys, ChainError> {
    serde_json::from_slice(text).map_err(|e| ChainError::NotJson { line: e.line(), column: e.column() })
}

/// The text of a key that has to be a text; `None` if the key is absent.
fn text(keys: &Keys, key: &'static str) -> Result<Option<String>, ChainError> {
    let Some(raw) = keys.get(key) else { return Ok(None) };
    serde_json::from_str(raw.get()).map(Some).map_err(|_| ChainError::Key { key, problem: "no text" })
}

fn plugin(text_of: Box<RawValue>) -> Result<Plugin, ChainError> {
    let keys = object(text_of.get().as_bytes())
        .map_err(|_| ChainError::Key { key: "plugins", problem: "no list of JSON objects" })?;
    let kind = text(&keys, "type")?.filter(|kind| !kind.is_empty());
    let kind = kind.ok_or(ChainError::Key { key: "type", problem: "missing in a plugin" })?;
    Ok(Plugin { kind, text: text_of })
}

fn raw(value: &Value) -> Box<RawValue> {
    // A value's text is JSON; the empty object stands in for what cannot happen.
    RawValue::from_string(value.to_string()).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

impl Conflist {
    /// Reads a file's text. A single plugin becomes a list of one, with its name and version, as
    /// libcni's `ConfListFromConf` makes it.
    ///
    /// # Errors
    /// What the runtime could not use either, and a version in which nothing is chained, or
    /// which our plugin does not speak.
    pub(super) fn parse(text_of: &[u8], form: Form) -> Result<Self, ChainError> {
        let keys = object(text_of)?;
        can_chain(text(&keys, "cniVersion")?.unwrap_or_default())?;
        if text(&keys, "name")?.is_none_or(|name| name.is_empty()) {
            return Err(ChainError::Key { key: "name", problem: "missing" });
        }
        Self::plugins_of(text_of, form)
    }

    /// Reads a file's plugins, whatever else is wrong with it: what is taken out, or looked for,
    /// may stand in a file that nothing would be added to.
    ///
    /// # Errors
    /// It has no list of plugins.
    pub(super) fn plugins_of(text_of: &[u8], form: Form) -> Result<Self, ChainError> {
        let mut keys = object(text_of)?;
        if form == Form::Single {
            let whole = RawValue::from_string(String::from_utf8_lossy(text_of).trim().to_owned());
            let whole = whole.map_err(|e| ChainError::NotJson { line: e.line(), column: e.column() })?;
            keys.retain(|key, _| matches!(key.as_str(), "cniVersion" | "name"));
            return Ok(Self { plugins_at: keys.len(), keys, plugins: vec![plugin(whole)?] });
        }
        let plugins_at = keys.get_index_of("plugins").ok_or(ChainError::Key { key: "plugins", problem: "missing" })?;
        let plugins = keys.shift_remove("plugins").unwrap_or_else(|| raw(&Value::Null));
        let plugins: Vec<Box<RawValue>> = serde_json::from_str(plugins.get())
            .map_err(|_| ChainError::Key { key: "plugins", problem: "no list of JSON objects" })?;
        let plugins: Vec<Plugin> = plugins.into_iter().map(plugin).collect::<Result<_, _>>()?;
        if plugins.is_empty() {
            return Err(ChainError::Key { key: "plugins", problem: "empty" });
        }
        Ok(Self { keys, plugins_at, plugins })
    }

    /// The network's name, which is also the name of the folder of its drop-ins.
    pub(super) fn name(&self) -> String {
        text(&self.keys, "name").ok().flatten().unwrap_or_default()
    }

    /// Whether plugins of a drop-in folder are not read (CNI specification 1.1,
    /// `loadOnlyInlinedPlugins`). libcni takes the text as well, in any case (`readBool` in its
    /// `NetworkConfFromBytes`).
    ///
    /// # Errors
    /// It is something else, with which libcni refuses the list.
    pub(super) fn only_inlined(&self) -> Result<bool, ChainError> {
        const KEY: &str = "loadOnlyInlinedPlugins";
        let Some(raw) = self.keys.get(KEY) else { return Ok(false) };
        match serde_json::from_str(raw.get()) {
            Ok(Value::Bool(value)) => Ok(value),
            Ok(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
            Ok(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
            _ => Err(ChainError::Key { key: KEY, problem: "neither true nor false" }),
        }
    }

    /// Plugins of other meshes that divert the same traffic.
    pub(super) fn other_meshes(&self) -> Vec<&str> {
        let kinds = self.plugins.iter().map(|plugin| plugin.kind.as_str());
        kinds.filter(|kind| MAY_FOLLOW.contains(kind)).collect()
    }

    /// The state of our entry in the list. `entry`: the content that it should have.
    pub(super) fn standing(&self, entry: &Value) -> EntryState {
        let mut ours = self.plugins.iter().enumerate().filter(|(_, plugin)| plugin.kind == TYPE);
        let Some((at, found)) = ours.next() else { return EntryState::Absent };
        let behind = self.plugins[at + 1..].iter().map(|plugin| plugin.kind.clone());
        let behind: Vec<String> = behind.filter(|kind| !MAY_FOLLOW.contains(&kind.as_str())).collect();
        let same = serde_json::from_str::<Value>(found.text.get()).is_ok_and(|found| found == *entry);
        match (ours.next(), same, behind.is_empty()) {
            (None, true, true) => EntryState::Effective,
            (None, true, false) => EntryState::Displaced { behind },
            _ => EntryState::Different,
        }
    }

    /// The list with our entry at the end, and nowhere else.
    pub(super) fn with(mut self, entry: &Value) -> Self {
        self = self.without();
        self.plugins.push(Plugin { kind: TYPE.into(), text: raw(entry) });
        self
    }

    /// The list without our entry.
    pub(super) fn without(mut self) -> Self {
        self.plugins.retain(|plugin| plugin.kind != TYPE);
        self
    }

    /// Whether there is an entry of ours, whoever wrote it.
    pub(super) fn has_entry(&self) -> bool {
        self.plugins.iter().any(|plugin| plugin.kind == TYPE)
    }

    /// Whether there is an entry of ours, and no plugin of others.
    pub(super) fn is_ours_alone(&self) -> bool {
        self.has_entry() && self.plugins.iter().all(|plugin| plugin.kind == TYPE)
    }

    /// The list without the entries that an agent wrote which has this one: they name the same
    /// run directory. One that somebody else wrote by hand stays.
    pub(super) fn without_agents(mut self, entry: &Value) -> Self {
        let run_dir = |entry: &Value| entry["cni_agent_run_dir"].clone();
        let is_agents = |plugin: &Plugin| {
            let found = serde_json::from_str::<Value>(plugin.text.get());
            plugin.kind == TYPE && found.is_ok_and(|found| run_dir(&found) == run_dir(entry))
        };
        self.plugins.retain(|plugin| !is_agents(plugin));
        self
    }

    /// How many plugins there are.
    pub(super) fn len(&self) -> usize {
        self.plugins.len()
    }

    /// Whether no plugin is left, so that the file has no use any more.
    pub(super) fn is_empty(&self) -> bool {
        self.plugins.is_empty()
    }

    /// The text of the list, a `.conflist`.
    pub(super) fn render(&self) -> String {
        let plugins: Vec<String> = self.plugins.iter().map(|plugin| format!("    {}", plugin.text.get())).collect();
        let plugins = format!("  \"plugins\": [\n{}\n  ]", plugins.join(",\n"));
        let keys = self.keys.iter().map(|(key, text)| format!("  {}: {}", Value::from(key.as_str()), text.get()));
        let mut lines: Vec<String> = keys.collect();
        lines.insert(self.plugins_at.min(lines.len()), plugins);
        format!("{{\n{}\n}}\n", lines.join(",\n"))
    }
}

/// Whether our entry can be in a list of this version of the specification: a version in which
/// plugins are chained, and which ours speaks, since a runtime hands it on to every plugin.
fn can_chain(version: String) -> Result<(), ChainError> {
    if version.is_empty() {
        return Err(ChainError::TooOld { found: "(none)".into() });
    }
    if CniVersion::chained().any(|chained| chained.name() == version) {
        return Ok(());
    }
    let parts: Option<Vec<u64>> = version.split('.').map(|part| part.parse().ok()).collect();
    let is_older = parts.is_some_and(|parts| parts < vec![0, 3]);
    Err(if is_older { ChainError::TooOld { found: version } } else { ChainError::NotSpoken { found: version } })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LIST: &str = r#"{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [
    { "type": "bridge", "mtu": 1450.0, "big": 123456789012345678901234567890 },
    { "type": "portmap", "capabilities": { "portMappings": true } }
  ],
  "disableCheck": true
}
"#;

    fn entry() -> Value {
        json!({ "type": "podweir", "cni_agent_run_dir": "/var/run/podweir" })
    }

    fn list(text: &str) -> Conflist {
        Conflist::parse(text.as_bytes(), Form::List).unwrap()
    }

    fn of(kinds: &[&str]) -> Conflist {
        let plugins: Vec<Value> =
            kinds.iter().map(|kind| if *kind == TYPE { entry() } else { json!({ "type": kind }) }).collect();
        list(&json!({ "cniVersion": "1.0.0", "name": "n", "plugins": plugins }).to_string())
    }

    #[test]
    fn everything_of_others_keeps_its_text_and_its_order() {
        assert_eq!(list(LIST).render(), LIST);
        let with = list(LIST).with(&entry()).render();
        assert!(with.contains("1450.0") && with.contains("123456789012345678901234567890"), "{with}");
        assert_eq!(list(&with).standing(&entry()), EntryState::Effective);
        assert_eq!(list(&with).without().render(), LIST);
        assert_eq!(list(&with).with(&entry()).render(), with);
        let order = |needle| with.find(needle).unwrap();
        assert!(order("bridge") < order("portmap") && order("portmap") < order("podweir"));
        assert!(order("podweir") < order("disableCheck"));
    }

    #[test]
    fn the_standing_of_the_entry() {
        let standing = |kinds: &[&str]| of(kinds).standing(&entry());
        assert_eq!(standing(&["bridge"]), EntryState::Absent);
        assert_eq!(standing(&["bridge", "podweir"]), EntryState::Effective);
        assert_eq!(standing(&["bridge", "podweir", "istio-cni"]), EntryState::Effective);
        assert_eq!(standing(&["podweir", "bridge"]), EntryState::Displaced { behind: vec!["bridge".into()] });
        assert_eq!(standing(&["bridge", "podweir", "podweir"]), EntryState::Different);
        let other = json!({ "type": "podweir" });
        assert_eq!(of(&["bridge", "podweir"]).standing(&other), EntryState::Different);
        assert_eq!(of(&["podweir", "bridge", "podweir"]).with(&entry()).standing(&entry()), EntryState::Effective);
    }

    #[test]
    fn a_single_plugin_becomes_a_list() {
        let single = r#"{ "cniVersion": "0.3.1", "name": "n", "type": "macvlan", "mtu": 1.50 }"#;
        let chain = Conflist::parse(single.as_bytes(), Form::Single).unwrap();
        let made: Value = serde_json::from_str(&chain.clone().with(&entry()).render()).unwrap();
        assert_eq!(made["cniVersion"], "0.3.1");
        assert_eq!(made["name"], "n");
        assert_eq!(made["plugins"][0]["type"], "macvlan");
        assert_eq!(made["plugins"][1], entry());
        assert!(chain.render().contains("1.50"));
    }

    #[test]
    fn what_is_no_list_is_refused_with_the_reason() {
        let refused = |text: &str| Conflist::parse(text.as_bytes(), Form::List).unwrap_err().to_string();
        for (text, words) in [
            ("", "no JSON object"),
            ("{", "line 1, column 1"),
            ("[]", "no JSON object"),
            (r#"{"cniVersion":"1.0.0","name":"n"}"#, "\"plugins\" is missing"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#, "\"plugins\" is empty"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":{}}"#, "no list of JSON objects"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[1]}"#, "no list of JSON objects"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{}]}"#, "\"type\" is missing"),
            (r#"{"cniVersion":"1.0.0","plugins":[{"type":"a"}]}"#, "\"name\" is missing"),
            (r#"{"cniVersion":"0.2.0","name":"n","plugins":[{"type":"a"}]}"#, "0.2.0 is older than 0.3.0"),
            (r#"{"name":"n","plugins":[{"type":"a"}]}"#, "(none) is older than 0.3.0"),
            (r#"{"cniVersion":"0.3.2","name":"n","plugins":[{"type":"a"}]}"#, "\"0.3.2\" is not one that this podweir"),
            (r#"{"cniVersion":"1.2.0","name":"n","plugins":[{"type":"a"}]}"#, "0.3.0, 0.3.1, 0.4.0, 1.0.0 or 1.1.0"),
            (r#"{"cniVersion":"v1","name":"n","plugins":[{"type":"a"}]}"#, "\"v1\" is not one that this podweir"),
        ] {
            assert!(refused(text).contains(words), "{text}: {}", refused(text));
        }
    }

    #[test]
    fn every_version_that_the_plugin_speaks_and_in_which_it_is_chained_is_taken() {
        let taken = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
        for version in taken {
            list(&json!({ "cniVersion": version, "name": "n", "plugins": [{ "type": "a" }] }).to_string());
        }
        assert_eq!(CniVersion::chained().map(CniVersion::name).collect::<Vec<_>>(), taken);
    }

    #[test]
    fn what_is_taken_out_may_stand_in_a_list_that_nothing_would_be_added_to() {
        let text = r#"{"cniVersion":"1.2.0","plugins":[{"type":"a"},{"type":"podweir"}]}"#;
        assert!(Conflist::parse(text.as_bytes(), Form::List).is_err());
        let chain = Conflist::plugins_of(text.as_bytes(), Form::List).unwrap();
        assert_ne!(chain.standing(&entry()), EntryState::Absent);
        assert_eq!(chain.without().standing(&entry()), EntryState::Absent);
    }

    #[test]
    fn whether_drop_ins_are_read() {
        assert_eq!(of(&["bridge"]).only_inlined(), Ok(false));
        let text = |value| {
            format!(
                r#"{{"cniVersion":"1.1.0","name":"n","loadOnlyInlinedPlugins": {value},"plugins":[{{"type":"a"}}]}}"#
            )
        };
        for (value, only) in [("true", true), (r#""true""#, true), (r#""TRUE""#, true), (r#""False""#, false)] {
            assert_eq!(list(&text(value)).only_inlined(), Ok(only), "{value}");
        }
        for value in ["1", "null", r#""yes""#] {
            let error = list(&text(value)).only_inlined().unwrap_err().to_string();
            assert!(error.contains("\"loadOnlyInlinedPlugins\" is neither true nor false"), "{error}");
        }
        assert_eq!(list(&text("true")).name(), "n");
    }
}
