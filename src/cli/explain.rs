//! `podweir explain`: who gets a flow, and why.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::net::IpAddr;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Value, json};

use crate::audit::answer;
use crate::audit::explain::{Explanation, NoTrace, explain};
use crate::audit::flow::{Direction, Flow, Surroundings, Taker};
use crate::audit::question::{self, AskedOwner, Defaults, Protocol, Question};
use crate::audit::source::Source;

use super::error::CliError;
use super::{output, source};

const EXAMPLES: &str = "\
Verdicts: outbound-proxy, inbound-proxy, dns-proxy: the proxy or its DNS gets it; direct:
it goes where it is addressed, past the proxy; dropped; unknown: a rule decides that is
not understood, and it is named.

A verdict is about where a connection's first packet goes. Where rules drop the replies, or
the packets that follow, so that nothing comes of it, the answer says so too.

What is left out of a flow: outbound, TCP, from an owner that no rule names; inbound to
the pod's own address.

With -v comes the walk through hooks and chains: of the first packet, a second time in where
it is looped back, then of those that follow and of the replies, as far as rules meet them.

--flows reads a JSON object on each line, with the members direction, proto, uid, gid,
source, source_port, destination, port, interface, mark and expect, and answers each by
a line {\"verdict\", \"rule\", \"why\"}, in order; {\"error\"} for a line that makes no sense.
Where packets have other addresses than were asked for (0.0.0.0 is the pod itself,
::ffff:10.0.0.1 is IPv4), the answer says \"flow\" and \"asked_as\" too.

Exit status: 0 answered, 1 --expect is not met or the rules cannot be read, 2 usage.

Examples:
  podweir explain --destination 10.0.0.1 --port 443 --pod-ip 10.244.0.6 -- -i '*' -o 3306
      Who would get a connection under these options.
  podweir explain --live -v --uid 1337 --destination 10.0.0.1 --port 443
      The way of the proxy's own packet through the rules of this namespace.
  podweir explain --dump rules.txt --direction inbound --port 15090 --expect direct
      A test of a mesh's policy: exit status 1 if somebody else gets it.
  iptables-save | podweir explain --dump - --flows flows.jsonl
      Many flows, one answer a line.
";

fn address(text: &str) -> Result<IpAddr, &'static str> {
    text.parse().map_err(|_| "expected an IPv4 or IPv6 address")
}

fn port(text: &str) -> Result<u16, &'static str> {
    text.parse().map_err(|_| "expected a number from 0 to 65535")
}

/// The `explain` subcommand.
pub(super) fn command() -> Command {
    let about = "Say who gets a connection or datagram, by which rule and why";
    Command::new("explain").about(about).defer(|command| {
        let heading = "Which flow";
        let arg = |name: &'static str, value: &'static str, help: &'static str| {
            Arg::new(name).long(name).value_name(value).help(help).help_heading(heading)
        };
        let command = command.args([
            arg("direction", "DIRECTION", "inbound or outbound [default: outbound]")
                .value_parser(["inbound", "outbound"]),
            arg("proto", "PROTOCOL", "tcp, udp, icmp or a number [default: tcp]"),
            arg("uid", "UID", "Who sends it; none: no process [default: a user that no rule names]"),
            arg("gid", "GID", "In which group; none: no process [default: one that no rule names]"),
            arg("source", "ADDRESS", "Where it comes from [default: what the kernel would choose]")
                .value_parser(address),
            arg("source-port", "PORT", "From which port [default: any of those clients get]").value_parser(port),
            arg("destination", "ADDRESS", "Where it goes to [default of an inbound one: the pod]")
                .value_parser(address),
            arg("port", "PORT", "To which port").value_parser(port),
            arg(
                "interface",
                "NAME",
                "By which interface [default: what routing says; where that is not known, the uplink]",
            )
            .allow_hyphen_values(true),
            arg("mark", "MARK", "Its packet mark [default: 0]"),
            arg("flows", "FILE", "Read flows as JSON lines from a file, - for standard input").conflicts_with_all([
                "direction",
                "proto",
                "uid",
                "gid",
                "source",
                "source-port",
                "destination",
                "port",
                "interface",
                "mark",
                "json",
            ]),
        ]);
        let command = command.args([
            Arg::new("expect")
                .long("expect")
                .value_name("VERDICT")
                .value_parser(Taker::ALL.map(Taker::name))
                .help("Exit with 1 when the verdict is another"),
            Arg::new("json").long("json").action(ArgAction::SetTrue).help("Explanation as JSON"),
        ]);
        source::with_source(command).after_long_help(format!("{}\n{EXAMPLES}", source::HELP))
    })
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), CliError> {
    output::check()?;
    let expect = matches.get_one::<String>("expect").and_then(|name| Taker::by_name(name));
    // What was typed is looked at before anything is read.
    let question = match matches.contains_id("flows") {
        true => None,
        false => Some(question(matches)?),
    };
    let source = source::read(matches)?;
    source::warn(&source);
    let defaults = Defaults::of(&source.ruleset, &source.pod);
    match question {
        None => flows(matches, &source, &defaults, expect),
        Some(question) => {
            let flow = question.flow(&defaults).map_err(CliError::Usage)?;
            let asked_as = question::asked_as(&question, &flow);
            one(matches, &source, &flow, asked_as, expect)
        }
    }
}

fn question(matches: &ArgMatches) -> Result<Question, CliError> {
    let text = |name: &str| matches.get_one::<String>(name).map(String::as_str);
    let wrong = |name: &str, text: &str, expected: &str| CliError::invalid(&format!("--{name}"), text, expected);
    let protocol =
        text("proto").map(|t| Protocol::parse(t).ok_or_else(|| wrong("proto", t, question::PROTOCOL))).transpose()?;
    let owner = |name: &'static str| {
        text(name).map(|t| AskedOwner::parse(t).ok_or_else(|| wrong(name, t, question::OWNER))).transpose()
    };
    let mark = |t: &str| match t.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => t.parse().ok(),
    };
    let mark = text("mark").map(|t| mark(t).ok_or_else(|| wrong("mark", t, "a number such as 0x539"))).transpose()?;
    Ok(Question {
        direction: text("direction").and_then(Direction::by_name),
        protocol,
        uid: owner("uid")?,
        gid: owner("gid")?,
        source: matches.get_one("source").copied(),
        source_port: matches.get_one("source-port").copied(),
        destination: matches.get_one("destination").copied(),
        port: matches.get_one("port").copied(),
        interface: text("interface").map(str::to_owned),
        mark,
        expect: None,
    })
}

/// Why nothing is known about a flow, if the source does not cover its family.
fn not_told(source: &Source, flow: &Flow) -> Option<String> {
    let family = flow.family();
    (!source.told.has(family)).then(|| format!("the dump does not tell the rules of {family}"))
}

/// The pod's surroundings; if its addresses are not known, an inbound flow's destination is one.
fn around<'a>(source: &'a Source, flow: &Flow) -> Cow<'a, Surroundings> {
    let mut pod = Cow::Borrowed(&source.pod);
    if flow.direction == Direction::Inbound && pod.addresses.is_empty() {
        pod.to_mut().addresses.push(flow.destination);
    }
    pod
}

fn one(
    matches: &ArgMatches,
    source: &Source,
    flow: &Flow,
    asked_as: Option<String>,
    expect: Option<Taker>,
) -> Result<(), CliError> {
    let verbose = matches.get_count("verbose") > 0;
    let mut walk = answer::AnswerLines::new(flow.family(), verbose);
    let not_told = not_told(source, flow);
    let answer = match not_told {
        Some(_) => Explanation::unknown(None),
        None => explain(&source.ruleset, &around(source, flow), flow, &mut walk),
    };
    let text = if matches.get_flag("json") {
        let mut value = answer::json(&answer, flow);
        if verbose {
            value["walk"] = json!(walk.lines);
        }
        if let Some(problem) = &not_told {
            value["problem"] = json!(problem);
        }
        if let Some(asked_as) = asked_as {
            value["asked_as"] = asked_as.into();
        }
        format!("{value:#}\n")
    } else {
        let walk = if verbose { walk.lines.iter().map(|line| format!("{line}\n")).collect() } else { String::new() };
        let asked_as = asked_as.map(|asked| format!("  asked for as {asked}\n")).unwrap_or_default();
        match &not_told {
            Some(problem) => format!("{walk}unknown: {flow}\n  cannot tell: {problem}\n{asked_as}"),
            None => format!("{walk}{}{asked_as}", answer::text(&answer, flow)),
        }
    };
    output::print(&text)?;
    match expect {
        Some(expect) if expect != answer.taker => {
            Err(CliError::Failed(format!("expected {expect}, and the verdict is {}", answer.taker)))
        }
        _ => Ok(()),
    }
}

/// Answers line by line. Answers are written when no more questions are waiting.
fn flows(matches: &ArgMatches, source: &Source, defaults: &Defaults, expect: Option<Taker>) -> Result<(), CliError> {
    let path = matches.get_one::<String>("flows").map_or("-", String::as_str);
    let failed = |e: io::Error| CliError::Failed(format!("cannot read flows from {path}: {e}"));
    let input: Box<dyn io::Read> = match path {
        "-" => Box::new(io::stdin().lock()),
        path => Box::new(File::open(path).map_err(failed)?),
    };
    let mut input = BufReader::with_capacity(1 << 16, input);
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let mut batch = Batch { source, defaults, expect, texts: HashMap::new(), unmet: 0, wrong: None };
    let (mut line, mut number) = (Vec::new(), 0usize);
    loop {
        if input.buffer().is_empty() {
            out.flush().map_err(CliError::Stdout)?;
        }
        line.clear();
        if input.read_until(b'\n', &mut line).map_err(failed)? == 0 {
            break;
        }
        number += 1;
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        batch.answer(&line, number, &mut out).map_err(CliError::Stdout)?;
    }
    out.flush().map_err(CliError::Stdout)?;
    match (batch.wrong, batch.unmet) {
        (Some(problem), _) => Err(CliError::Usage(problem)),
        (None, 0) => Ok(()),
        (None, unmet) => Err(CliError::Failed(format!("{unmet} flows have another verdict than expected"))),
    }
}

/// Answers to many questions about one source.
struct Batch<'a> {
    source: &'a Source,
    defaults: &'a Defaults,
    expect: Option<Taker>,
    /// The texts of rules and reasons, as JSON, by their addresses: the same ones decide again and
    /// again.
    texts: HashMap<(usize, usize), Box<str>>,
    unmet: usize,
    /// The error of the first line that is no question.
    wrong: Option<String>,
}

impl Batch<'_> {
    fn answer(&mut self, line: &[u8], number: usize, out: &mut impl Write) -> io::Result<()> {
        let question = Question::from_json(line);
        let expect = question.as_ref().ok().and_then(|question| question.expect).or(self.expect);
        let asked = question.and_then(|question| {
            let flow = question.flow(self.defaults)?;
            Ok((question::asked_as(&question, &flow), flow))
        });
        let (asked_as, flow) = match asked {
            Ok(asked) => asked,
            Err(problem) => {
                writeln!(out, "{}", json!({ "error": problem }))?;
                self.wrong.get_or_insert_with(|| format!("line {number} of the flows: {problem}"));
                return Ok(());
            }
        };
        let answer = match not_told(self.source, &flow) {
            Some(_) => Explanation::unknown(None),
            None => explain(&self.source.ruleset, &around(self.source, &flow), &flow, &mut NoTrace),
        };
        let met = expect.is_none_or(|expect| expect == answer.taker);
        self.unmet += usize::from(!met);
        write!(out, "{{\"verdict\":\"{}\",{}", answer.taker.name(), self.text(&answer, &flow))?;
        if let Some(lost) = &answer.lost {
            write!(out, ",\"lost\":{}", Value::from(answer::lost(lost, flow.family())))?;
        }
        if let Some(asked_as) = asked_as {
            write!(out, ",\"flow\":{},\"asked_as\":{}", json!(flow.to_string()), json!(asked_as))?;
        }
        match expect {
            Some(expect) if !met => writeln!(out, ",\"expected\":\"{expect}\"}}"),
            _ => out.write_all(b"}\n"),
        }
    }

    /// The members `rule` and `why` of an answer, as JSON.
    fn text(&mut self, answer: &Explanation, flow: &Flow) -> &str {
        let rule = answer.decider.map_or(0, |decider| std::ptr::from_ref(decider.rule) as usize);
        let why = answer.why.map_or(0, |why| std::ptr::from_ref(why) as usize);
        self.texts.entry((rule, why)).or_insert_with(|| {
            let rule = answer.decider.map(|decider| answer::rule(&decider, flow.family()));
            let why = answer.why.map(|why| why.sentence());
            format!("\"rule\":{},\"why\":{}", Value::from(rule), Value::from(why)).into()
        })
    }
}
