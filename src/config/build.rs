//! From the values that hold to the configuration as it runs; and the mistakes that no single value shows.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::Judge;
use super::filters::{self, FilterWritten};
use super::keys::nearest;
use super::layers::{Held, JailWritten, Layer, Layers, Values};
use super::report::{Concern, Findings};
use super::run::{
    Accounts, Backend, Broken, Config, Daemon, Evidence, FilterUse, IgnoreList, Increment, Jail, Log, Loglevel, MANUAL, Nft,
    RECIDIVE, Window,
};
use super::source::{Source, quoted};
use super::values::{self, FilterName, Meaning};
use crate::filter::{Definition, Mistake};
use crate::terms::journal::{Journal, Match};
use crate::terms::{Blocktype, Family, Hook, Ports, Protocols};

/// Everything needed while building.
pub struct Builder<'a> {
    pub layers: &'a Layers<'a>,
    pub files: &'a [Source],
    pub findings: &'a mut Findings,
    pub judge: &'a dyn Judge,
    /// Filters by name.
    pub filters: BTreeMap<&'a str, (&'a Layer, &'a FilterWritten)>,
}

/// A jail on its way: what it will be if nothing more is found.
struct Draft {
    jail: Jail,
    file: usize,
    at: Range<usize>,
}

impl Builder<'_> {
    /// The configuration, and in the findings what keeps it from being whole.
    pub fn config(&mut self) -> Config {
        let mut drafts = Vec::new();
        let names: Vec<String> = self.layers.jail_names().into_iter().map(str::to_owned).collect();
        // A jail whose every file was refused has no values, and still is broken.
        let refused: Vec<String> =
            self.findings.jails.keys().filter(|name| !names.contains(name) && *name != MANUAL).cloned().collect();
        let used = self.filters_in_use(&names);
        for (layer, filter) in self.filters.clone().values() {
            // A shipped filter that nobody uses is left to the project's own tests.
            if !layer.shipped || used.contains(&filter.definition.name) {
                self.judge_filter(layer, filter);
            }
        }
        let mut broken = Vec::new();
        for name in names {
            let values = self.layers.jail(&name);
            // Where `enabled` itself is wrong, it was written to enable the jail.
            let enabled = flag(&values, "enabled") || self.findings.enabling.contains(&name);
            if let Some(draft) = self.draft(&name, &values, enabled)
                && enabled
            {
                drafts.push(draft);
            }
            if enabled && self.findings.jails.contains_key(&name) {
                broken.push(name);
            }
        }
        self.collisions(&drafts);
        broken.extend(drafts.iter().map(|draft| draft.jail.name.clone()));
        broken.extend(refused);
        broken.sort();
        broken.dedup();
        let broken = broken.into_iter().filter_map(|name| self.broken(name)).collect();
        let mut jails: Vec<Jail> =
            drafts.into_iter().map(|draft| draft.jail).filter(|jail| !self.findings.jails.contains_key(&jail.name)).collect();
        jails.push(Jail::manual(&jails));
        jails.sort_by(|a, b| a.name.cmp(&b.name));
        let ignore = match self.layers.defaults().get("ignoreip").and_then(|held| held.last()).map(|held| &held.field.meaning) {
            Some(Meaning::Ignore(list)) => list.clone(),
            _ => IgnoreList::default(),
        };
        if let Some(held) = self.layers.nft().get("priority.bridge").and_then(|held| held.last())
            && let Meaning::Priority(priority) = held.field.meaning
            && priority.of(Family::Bridge).is_some_and(|priority| UNASKED.contains(&priority))
        {
            let help = Some("write -200, or leave it out".to_owned());
            self.findings.warning(held.layer.file, Some(held.field.at.clone()), format!("priority: {UNASKED_BRIDGE}"), help);
        }
        Config {
            daemon: daemon(&self.layers.daemon()),
            nft: nft(&self.layers.nft()),
            evidence: evidence(&self.layers.evidence()),
            ignore,
            jails,
            broken,
        }
    }

    fn broken(&self, name: String) -> Option<Broken> {
        let why = self.findings.jails.get(&name)?;
        let place = self.files.get(why.file).map_or_else(String::new, |file| {
            format!("{}:{}: ", crate::terms::escape(file.path.as_bytes(), 4096), file.line(why.at))
        });
        Some(Broken { why: format!("{place}{}", why.what), name: crate::terms::escape(name.as_bytes(), 200) })
    }

    /// Where a jail is cited as a whole: its header in the file that enables it, or the line that does.
    fn citation(&self, name: &str, values: &Values<'_>) -> (usize, Range<usize>) {
        let Some(held) = values.get("enabled").or_else(|| values.values().next()).and_then(|held| held.last()) else {
            return (0, 0..0);
        };
        let header = |jail: &JailWritten| jail.header.clone();
        let at = if held.from_defaults { None } else { held.layer.jails.get(name).and_then(header) };
        (held.layer.file, at.unwrap_or_else(|| held.field.at.clone()))
    }

    fn jail_mistake(&mut self, jail: &str, file: usize, at: Range<usize>, what: String, help: String) {
        self.findings.mistake(&Concern::Jail(jail.to_owned()), file, Some(at), what, Some(help));
    }

    fn draft(&mut self, name: &str, values: &Values<'_>, enabled: bool) -> Option<Draft> {
        let (file, at) = self.citation(name, values);
        let mut jail = Jail::named(name);
        for held in values.values().filter_map(|held| held.last()) {
            set(&mut jail, held);
        }
        self.priority(&mut jail, values);
        if let Some(own) = values.get("ignoreip").into_iter().flatten().find(|held| !held.from_defaults) {
            extend(&mut jail.ignore, own);
        }
        if let Some(own) = values.get("ignoreip_only").and_then(|held| held.last()) {
            jail.ignore_only = true;
            extend(&mut jail.ignore, own);
        }
        let writes_filter = values.get("filter").is_some_and(|held| held.iter().any(|held| !held.layer.shipped));
        if !enabled && !writes_filter {
            return None;
        }
        let fed = name == RECIDIVE && !values.contains_key("filter");
        if !fed {
            jail.filter = self.filter_use(name, values, (file, at.clone()));
        }
        if !enabled {
            return None;
        }
        self.entries(&mut jail, values, (file, at.clone()));
        // What is missing is said only of a jail whose values are right: otherwise it may be what is wrong.
        if !self.findings.jails.contains_key(name) {
            if jail.logpath.is_empty() && jail.entries.is_none() && !fed {
                let help = match jail.backend {
                    Backend::File => "write logpath = \"/var/log/…\"",
                    _ => "write logpath = \"/var/log/…\", or journalmatch for entries of the journal",
                };
                let help = help.to_owned();
                self.jail_mistake(name, file, at.clone(), format!("jail {name}: no source: this jail can never ban"), help);
            }
            if !values.contains_key("port") && jail.protocols != Protocols::All {
                let help = "write port = \"smtp\", numbers, \"mail\", \"web\" or \"all\"".to_owned();
                self.jail_mistake(name, file, at.clone(), format!("jail {name}: no port: this jail can never ban"), help);
            }
        }
        if let (Protocols::All, Ports::List(_)) = (&jail.protocols, &jail.ports) {
            let held = values.get("protocol").or_else(|| values.get("port")).and_then(|held| held.last());
            let (file, at) = held.map_or((file, at.clone()), |held| (held.layer.file, held.field.node.span.clone()));
            let help = "write port = \"all\", or the protocols that have ports".to_owned();
            self.jail_mistake(name, file, at, "protocol: all goes with all ports only".to_owned(), help);
        }
        if let (Some(aggregate), Some(held)) = (jail.aggregate, values.get("aggregate").and_then(|held| held.last())) {
            for (v, bits, prefix) in [(4, aggregate.v4, jail.ipv4_prefix), (6, aggregate.v6, jail.ipv6_prefix)] {
                let Some(bits) = bits.filter(|bits| *bits >= prefix) else { continue };
                let what =
                    format!("aggregate: v{v} = {bits} is no wider than ipv{v}_prefix = {prefix}: nothing would ever add up");
                let help = format!("write a v{v} below {prefix}");
                self.jail_mistake(name, held.layer.file, held.field.node.span.clone(), what, help);
            }
        }
        if jail.observe
            && let Some(held) = values.get("observe").and_then(|held| held.last())
        {
            let what = format!("jail {name}: observe: it decides and logs, and can never ban");
            self.findings.warning(
                held.layer.file,
                Some(held.field.at.clone()),
                what,
                Some("leave observe out once its decisions are right".to_owned()),
            );
        }
        self.check_tables(&jail, values);
        Some(Draft { jail, file, at })
    }

    /// The priority of a jail's own chains: a name means the number it has in the jail's tables.
    fn priority(&mut self, jail: &mut Jail, values: &Values<'_>) {
        let Some(held) = values.get("priority").and_then(|held| held.last()) else { return };
        let Meaning::Priority(priority) = &held.field.meaning else { return };
        let family = if jail.families == [Family::Bridge] { Family::Bridge } else { Family::Inet };
        jail.priority = priority.of(family);
        if jail.priority.is_none() {
            let what = format!("priority: tables of family {family} have no priority of that name");
            self.jail_mistake(&jail.name, held.layer.file, held.field.node.span.clone(), what, values::priority_help(family));
        }
    }

    /// Which entries of a journal a jail judges, if it may read one.
    fn entries(&mut self, jail: &mut Jail, values: &Values<'_>, place: (usize, Range<usize>)) {
        if jail.backend == Backend::File || self.findings.jails.contains_key(&jail.name) {
            return;
        }
        let own = values.get("journalmatch").and_then(|held| held.last());
        let texts = match own.map(|held| &held.field.meaning) {
            Some(Meaning::Texts(texts)) => texts.clone(),
            _ => jail.filter.as_ref().map(|filter| filter.definition.journalmatch.clone()).unwrap_or_default(),
        };
        let name = jail.name.clone();
        match Match::parse(&texts) {
            Ok(found) if !found.alternatives.is_empty() => jail.entries = Some(found),
            Ok(every) if jail.backend == Backend::Journal => {
                jail.entries = Some(every);
                let (file, at) = values
                    .get("backend")
                    .and_then(|held| held.last())
                    .map_or(place, |held| (held.layer.file, held.field.at.clone()));
                let what = format!("jail {name}: no journalmatch: every entry of the journal is judged, whoever wrote it");
                let help = "write journalmatch = \"_SYSTEMD_UNIT=…\" for entries of one service";
                self.findings.warning(file, Some(at), what, Some(help.to_owned()));
            }
            Ok(_) => {}
            // The jail's own was cited where it stands.
            Err(fault) => {
                let what = format!("filter: journalmatch: {}", fault.what);
                self.jail_mistake(&name, place.0, place.1, what, fault.help);
            }
        }
        if jail.logpath.is_empty() && jail.entries.is_some() {
            jail.backend = Backend::Journal;
        }
    }

    /// Says where a jail's rules can not do what they are written for.
    fn check_tables(&mut self, jail: &Jail, values: &Values<'_>) {
        let mut warn = |key: &str, what: &str, help: &str| {
            if let Some(held) = values.get(key).and_then(|held| held.last()) {
                let what = format!("jail {}: {key}: {what}", jail.name);
                self.findings.warning(held.layer.file, Some(held.field.at.clone()), what, Some(help.to_owned()));
            }
        };
        let bridged = jail.families.contains(&Family::Bridge);
        if bridged && !jail.hooks.iter().any(|hook| matches!(hook, Hook::Forward | Hook::Prerouting)) {
            warn("family", "what a bridge passes on meets none of its chain_hook", "write chain_hook = \"forward\"");
        }
        if bridged && jail.families == [Family::Bridge] && jail.priority.is_some_and(|priority| UNASKED.contains(&priority)) {
            warn("priority", UNASKED_BRIDGE, "write -200, or leave it out");
        }
        if jail.dnat && jail.ports == Ports::All {
            warn("dnat", "says nothing where port = \"all\"", "leave it out");
        } else if jail.dnat && jail.families == [Family::Bridge] {
            warn(
                "dnat",
                "destinations are translated in the inet family only",
                "write family = [\"inet\", \"bridge\"], or leave it out",
            );
        }
    }

    /// The filter a jail uses, with what the jail adds.
    fn filter_use(&mut self, jail: &str, values: &Values<'_>, place: (usize, Range<usize>)) -> Option<FilterUse> {
        let written = values.get("filter").and_then(|held| held.last());
        let own = FilterName { name: jail.to_owned(), at: place.1.clone(), params: BTreeMap::new() };
        let (used, file) = match written.map(|held| (&held.field.meaning, held.layer.file)) {
            Some((Meaning::Filter(name), file)) => (name.clone(), file),
            // Written and not understood: that was said.
            _ if self.findings.jails.contains_key(jail) => return None,
            _ => (own, place.0),
        };
        if values::names_fail2ban(&used.name) {
            return self.fail2ban_use(jail, values, file, used);
        }
        let Some((layer, filter)) = self.filters.get(used.name.as_str()).copied() else {
            let near = nearest(&used.name, self.filters.keys().copied());
            let help = near.map_or_else(
                || "write one of its own into filter.d, or filter = \"NAME\" of one that exists".to_owned(),
                |near| format!("did you mean \"{near}\"?"),
            );
            self.jail_mistake(jail, file, used.at, format!("filter: there is no filter {}", quoted(&used.name)), help);
            return None;
        };
        let mut params = BTreeMap::new();
        for (name, (given, at)) in &used.params {
            if name == "mode" {
                let mode = given.join(" ");
                self.check_mode(jail, file, at, filter, &mode, &mut params);
                continue;
            }
            let Some(param) = filter.definition.params.get(name) else {
                let known: Vec<&str> = filter
                    .definition
                    .params
                    .keys()
                    .map(String::as_str)
                    .chain((!filter.definition.modes.is_empty()).then_some("mode"))
                    .collect();
                let help = match nearest(name, known.iter().copied()) {
                    Some(near) => format!("did you mean {near}?"),
                    None if known.is_empty() => "this filter has no parameters".to_owned(),
                    None => format!("this filter has {}", known.join(", ")),
                };
                let shown = super::source::shown(name);
                self.jail_mistake(jail, file, at.clone(), format!("filter {}: unknown parameter {shown}", used.name), help);
                continue;
            };
            match filters::parameter(param, given) {
                Ok(given) => {
                    params.insert(name.clone(), given);
                }
                Err((what, help)) => {
                    self.jail_mistake(jail, file, at.clone(), format!("filter {}: {name}: {what}", used.name), help)
                }
            }
        }
        // A mode for every jail goes to those whose filter has it.
        let applies = |held: &&Held<'_>| match &held.field.meaning {
            Meaning::Text(mode) => !held.from_defaults || filter.definition.modes.contains_key(mode),
            _ => false,
        };
        if let Some(held) = values.get("mode").and_then(|held| held.last()).filter(applies)
            && let Meaning::Text(mode) = &held.field.meaning
        {
            self.check_mode(jail, held.layer.file, &held.field.node.span, filter, mode, &mut params);
        }
        let definition = self.with_additions(&filter.definition, values);
        if let Some(why) = self.findings.filters.get(&used.name) {
            // The filter's own mistake is told where it stands; the jail is broken by it.
            self.findings.jails.entry(jail.to_owned()).or_insert_with(|| why.clone());
        } else if !self.findings.jails.contains_key(jail) && (definition != filter.definition || !params.is_empty()) {
            for mistake in self.judge.compile(&definition, &params) {
                self.jail_filter_mistake(jail, values, layer, filter, &mistake, (file, used.at.clone()));
            }
        }
        Some(FilterUse { name: used.name, params, definition: Arc::new(definition), on_journal: None })
    }

    /// A filter of fail2ban, named by its path.
    fn fail2ban_use(&mut self, jail: &str, values: &Values<'_>, file: usize, used: FilterName) -> Option<FilterUse> {
        let mut params: BTreeMap<String, String> =
            used.params.iter().map(|(name, (given, _))| (name.to_lowercase(), given.join(" "))).collect();
        let mode = values.get("mode").and_then(|held| held.last()).and_then(|held| match &held.field.meaning {
            Meaning::Text(mode) => Some((mode.clone(), held.from_defaults)),
            _ => None,
        });
        let mut read = None;
        if let Some((mode, from_defaults)) = mode {
            params.insert("mode".to_owned(), mode);
            let with = self.judge.fail2ban(&used.name, &params);
            // A mode for every jail goes to those whose filter has it.
            if with.is_err() && from_defaults {
                params.remove("mode");
            } else {
                read = Some(with);
            }
        }
        let read = read.unwrap_or_else(|| self.judge.fail2ban(&used.name, &params));
        let found = match read {
            Ok(found) => found,
            Err(mistakes) => {
                for what in mistakes {
                    let help = "the line is one of the filter's files".to_owned();
                    self.jail_mistake(jail, file, used.at.clone(), format!("filter: {what}"), help);
                }
                return None;
            }
        };
        for note in found.notes {
            self.findings.warning(file, Some(used.at.clone()), format!("filter: {note}"), None);
        }
        let definition = self.with_additions(&found.definition, values);
        if definition != found.definition {
            for mistake in self.judge.compile(&definition, &BTreeMap::new()) {
                let nodes = values.get(mistake.key.as_str()).into_iter().flatten();
                let written =
                    nodes.flat_map(|held| filters::entries(&held.field.node).iter().map(|node| (held.layer.file, node)));
                let place = written.map(|(file, node)| (file, node.span.clone())).nth(mistake.index);
                let (file, at) = place.unwrap_or_else(|| (file, used.at.clone()));
                let what = format!("{}: {}", mistake.key, mistake.what);
                let help = mistake.help.or_else(|| Some("it is read as fail2ban's patterns are".to_owned()));
                self.findings.mistake(&Concern::Jail(jail.to_owned()), file, Some(at), what, help);
            }
        }
        // fail2ban's files have other patterns for lines of the journal, chosen by a parameter that its backend sets.
        let on_file = matches!(values.get("backend").and_then(|held| held.last()).map(|held| &held.field.meaning),
            Some(Meaning::Text(word)) if word == "file");
        let on_journal = if on_file || params.contains_key("logtype") {
            None
        } else {
            params.insert("logtype".to_owned(), "journal".to_owned());
            self.judge.fail2ban(&used.name, &params).ok().map(|found| self.with_additions(&found.definition, values))
        };
        let on_journal = on_journal.filter(|other| *other != definition).map(Arc::new);
        Some(FilterUse { name: used.name, params: BTreeMap::new(), definition: Arc::new(definition), on_journal })
    }

    fn check_mode(
        &mut self,
        jail: &str,
        file: usize,
        at: &Range<usize>,
        filter: &FilterWritten,
        mode: &str,
        params: &mut BTreeMap<String, Vec<String>>,
    ) {
        let modes: Vec<&str> = filter.definition.modes.keys().map(String::as_str).collect();
        if modes.contains(&mode) {
            params.insert("mode".to_owned(), vec![mode.to_owned()]);
        }
        // fail2ban's word for the filter as it is.
        if modes.contains(&mode) || mode == "normal" {
            return;
        }
        let help = match nearest(mode, modes.iter().copied()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None if modes.is_empty() => "leave it out: this filter has no modes".to_owned(),
            None => format!("this filter has {}", modes.join(", ")),
        };
        self.jail_mistake(
            jail,
            file,
            at.clone(),
            format!("mode: filter {} has no mode {}", filter.definition.name, quoted(mode)),
            help,
        );
    }

    /// The filter with the jail's patterns at the end of its lists, and the jail's datepattern and maxlines.
    fn with_additions(&self, filter: &Definition, values: &Values<'_>) -> Definition {
        let mut definition = filter.clone();
        let added = |key: &str| {
            let mut out = Vec::new();
            for held in values.get(key).into_iter().flatten() {
                if let Meaning::Texts(texts) = &held.field.meaning {
                    out.extend(texts.iter().cloned());
                }
            }
            out
        };
        definition.patterns.failregex.extend(added("failregex_add"));
        definition.patterns.ignoreregex.extend(added("ignoreregex_add"));
        let dates = added("datepattern");
        if !dates.is_empty() {
            definition.datepattern = dates;
        }
        if let Some(Meaning::Number(lines)) = values.get("maxlines").and_then(|held| held.last()).map(|held| &held.field.meaning)
        {
            definition.maxlines = u32::try_from(*lines).unwrap_or(1);
        }
        definition
    }

    /// A mistake in a filter as a jail uses it: the jail's if it stands in what the jail adds, else the filter's.
    fn jail_filter_mistake(
        &mut self,
        jail: &str,
        values: &Values<'_>,
        layer: &Layer,
        filter: &FilterWritten,
        mistake: &Mistake,
        place: (usize, Range<usize>),
    ) {
        let (key, base) = match mistake.key.as_str() {
            "failregex" => ("failregex_add", filter.definition.patterns.failregex.len()),
            "ignoreregex" => ("ignoreregex_add", filter.definition.patterns.ignoreregex.len()),
            "datepattern" if values.contains_key("datepattern") => ("datepattern", 0),
            "maxlines" if values.contains_key("maxlines") => ("maxlines", 0),
            other => (other, usize::MAX),
        };
        let mut index = match mistake.index.checked_sub(base) {
            Some(index) => index,
            None => {
                let (file, at) = if base == usize::MAX { place } else { (layer.file, filter.place(&mistake.key, mistake.index)) };
                self.jail_mistake(
                    jail,
                    file,
                    at,
                    format!("filter {}: {}: {}", filter.definition.name, mistake.key, mistake.what),
                    mistake.help.clone().unwrap_or_default(),
                );
                return;
            }
        };
        for held in values.get(key).into_iter().flatten() {
            let nodes = filters::entries(&held.field.node);
            if let Some(node) = nodes.get(index) {
                let at = self.inside(held.layer.file, &node.span, mistake.at.as_ref());
                let concern = if held.from_defaults { Concern::All } else { Concern::Jail(jail.to_owned()) };
                self.findings.mistake(
                    &concern,
                    held.layer.file,
                    Some(at),
                    format!("{key}: {}", mistake.what),
                    mistake.help.clone(),
                );
                return;
            }
            index -= nodes.len();
        }
        self.jail_mistake(jail, place.0, place.1, format!("{key}: {}", mistake.what), mistake.help.clone().unwrap_or_default());
    }

    fn inside(&self, file: usize, span: &Range<usize>, at: Option<&Range<usize>>) -> Range<usize> {
        match (self.files.get(file), at) {
            (Some(source), Some(at)) => source.inside(span, at),
            _ => span.clone(),
        }
    }

    /// What the filter room says of a filter on its own: its patterns in every mode, and its samples.
    fn judge_filter(&mut self, layer: &Layer, filter: &FilterWritten) {
        let name = &filter.definition.name;
        if self.findings.filters.contains_key(name) {
            return;
        }
        let mut mistakes = self.judge.compile(&filter.definition, &BTreeMap::new());
        for mode in filter.definition.modes.keys() {
            for mistake in self.judge.compile(&filter.definition, &BTreeMap::from([("mode".to_owned(), vec![mode.clone()])])) {
                if !mistakes.contains(&mistake) {
                    mistakes.push(mistake);
                }
            }
        }
        if mistakes.is_empty() {
            mistakes = self.judge.verify(&filter.definition);
        }
        if mistakes.is_empty() && !layer.shipped {
            self.judge_shipped_samples(layer, filter);
        }
        for mistake in mistakes {
            let at = self.inside(layer.file, &filter.place(&mistake.key, mistake.index), mistake.at.as_ref());
            self.findings.mistake(
                &Concern::Filter(name.clone()),
                layer.file,
                Some(at),
                format!("{}: {}", mistake.key, mistake.what),
                mistake.help,
            );
        }
    }

    /// Whether a filter that stands instead of a shipped one still meets the samples of that one: a notice, no mistake.
    fn judge_shipped_samples(&mut self, layer: &Layer, filter: &FilterWritten) {
        let name = &filter.definition.name;
        let Some(shipped) = self.layers.shipped_filter(name) else { return };
        let with_samples = Definition { samples: shipped.definition.samples.clone(), ..filter.definition.clone() };
        let missed: Vec<Mistake> =
            self.judge.verify(&with_samples).into_iter().filter(|mistake| mistake.key == "sample").collect();
        let Some(first) = missed.first() else { return };
        let line = with_samples
            .samples
            .get(first.index)
            .map_or_else(String::new, |sample| crate::terms::escape(sample.line.as_bytes(), 200));
        let what = format!(
            "filter {name}: {} of {} samples of the shipped filter no longer hold",
            missed.len(),
            with_samples.samples.len()
        );
        self.findings.warning(layer.file, Some(filter.at.clone()), what, Some(format!("the first: {}: {line}", first.what)));
    }

    /// The filters of the enabled jails.
    fn filters_in_use(&self, jails: &[String]) -> BTreeSet<String> {
        let mut used = BTreeSet::new();
        for jail in jails {
            let values = self.layers.jail(jail);
            if flag(&values, "enabled") {
                match values.get("filter").and_then(|held| held.last()).map(|held| &held.field.meaning) {
                    Some(Meaning::Filter(filter)) => used.insert(filter.name.clone()),
                    _ => used.insert(jail.clone()),
                };
            }
        }
        used
    }

    /// Jails whose sets would have one name: `JAIL-v4`, and `JAIL-ignore-v4` where the jail has an ignore list of its own.
    fn collisions(&mut self, drafts: &[Draft]) {
        for draft in drafts {
            let Some(other) = draft.jail.name.strip_suffix("-ignore") else { continue };
            if drafts.iter().any(|draft| draft.jail.name == other) {
                let name = draft.jail.name.clone();
                let what = format!(
                    "jail {name}: the name is taken: the sets {name}-v4 and {name}-v6 hold the ignored addresses of jail {other}"
                );
                self.jail_mistake(&name, draft.file, draft.at.clone(), what, "choose another name".to_owned());
            }
        }
    }
}

fn flag(values: &Values<'_>, key: &str) -> bool {
    values.get(key).and_then(|held| held.last()).is_some_and(|held| held.field.meaning == Meaning::Bool(true))
}

fn extend(list: &mut IgnoreList, held: &Held<'_>) {
    if let Meaning::Ignore(more) = &held.field.meaning {
        list.nets.extend(more.nets.iter().copied());
        list.names.extend(more.names.iter().cloned());
    }
}

/// Priorities of a bridge's chains between which br_netfilter takes packets away: what comes after it is not asked on several kernels.
const UNASKED: std::ops::RangeInclusive<i32> = -1..=0;
const UNASKED_BRIDGE: &str = "with br_netfilter on, several kernels never ask a bridge's chain at this priority";

/// Puts a value where it belongs. Keys that need more than themselves are left to [`Builder::draft`].
fn set(jail: &mut Jail, held: &Held<'_>) {
    match (held.field.key.name, &held.field.meaning) {
        ("backend", Meaning::Text(word)) => {
            jail.backend = match word.as_str() {
                "file" => Backend::File,
                "journal" => Backend::Journal,
                _ => Backend::Auto,
            };
        }
        ("logpath", Meaning::Texts(paths)) => jail.logpath.clone_from(paths),
        ("journal_path", Meaning::Text(text)) => {
            jail.journal = match text.strip_prefix('@') {
                Some(name) => Journal::Namespace(name.to_owned()),
                None => Journal::Path(text.clone()),
            };
        }
        ("port", Meaning::Ports(ports)) => jail.ports = ports.clone(),
        ("protocol", Meaning::Protocols(protocols)) => jail.protocols = protocols.clone(),
        ("chain_hook", Meaning::Hooks(hooks)) => jail.hooks.clone_from(hooks),
        ("family", Meaning::Families(families)) => jail.families.clone_from(families),
        ("dnat", Meaning::Bool(yes)) => jail.dnat = *yes,
        ("blocktype", Meaning::Text(word)) => jail.blocktype = if word == "reject" { Blocktype::Reject } else { Blocktype::Drop },
        ("maxretry", Meaning::Number(number)) => jail.maxretry = u32::try_from(*number).unwrap_or(1),
        ("findtime", Meaning::Span(span)) => jail.findtime = *span,
        ("bantime", Meaning::Lasting(lasting)) => jail.bantime = *lasting,
        ("window", Meaning::Text(word)) => jail.window = if word == "fail2ban" { Window::Fail2ban } else { Window::Sliding },
        ("ignoreself", Meaning::Bool(yes)) => jail.ignoreself = *yes,
        ("ipv4_prefix", Meaning::Number(bits)) => jail.ipv4_prefix = u8::try_from(*bits).unwrap_or(32),
        ("ipv6_prefix", Meaning::Number(bits)) => jail.ipv6_prefix = u8::try_from(*bits).unwrap_or(64),
        ("aggregate", Meaning::Aggregate(aggregate)) => jail.aggregate = *aggregate,
        ("logtimezone", Meaning::Zone(zone)) => jail.logtimezone = Some(zone.clone()),
        ("observe", Meaning::Bool(yes)) => jail.observe = *yes,
        ("label", Meaning::Text(text)) => jail.label = Some(text.clone()),
        (_, meaning) if held.field.key.place == super::keys::Place::Increment => {
            grow(&mut jail.increment, held.field.key.name, meaning)
        }
        _ => {}
    }
}

fn grow(increment: &mut Increment, key: &str, meaning: &Meaning) {
    match (key, meaning) {
        ("enabled", Meaning::Bool(yes)) => increment.enabled = *yes,
        ("factor", Meaning::Factor(factor)) => increment.factor = *factor,
        ("multipliers", Meaning::Factors(factors)) => increment.multipliers.clone_from(factors),
        ("maxtime", Meaning::Span(span)) => increment.maxtime = Some(*span),
        ("rndtime", Meaning::Span(span)) => increment.rndtime = *span,
        ("memory", Meaning::Span(span)) => increment.memory = *span,
        ("overalljails", Meaning::Bool(yes)) => increment.overalljails = *yes,
        _ => {}
    }
}

fn nft(values: &Values<'_>) -> Nft {
    let mut nft = Nft::default();
    for (path, held) in values.iter().filter_map(|(path, held)| Some((path.as_str(), held.last()?))) {
        match (path, &held.field.meaning) {
            ("table", Meaning::Text(name)) => nft.table.clone_from(name),
            ("ipv6", Meaning::Tristate(state)) => nft.ipv6 = *state,
            ("owner", Meaning::Bool(yes)) => nft.owner = *yes,
            ("set_size", Meaning::Number(size)) => nft.set_size = u32::try_from(*size).ok(),
            ("element_counters", Meaning::Tristate(state)) => nft.element_counters = *state,
            ("priority.bridge", Meaning::Priority(priority)) => {
                nft.bridge_priority = priority.of(Family::Bridge).unwrap_or(nft.bridge_priority);
            }
            (path, Meaning::Priority(priority)) => {
                let hook = path.strip_prefix("priority.").and_then(|name| Hook::ALL.into_iter().find(|hook| hook.name() == name));
                if let (Some(hook), Some(priority)) = (hook, priority.of(Family::Inet)) {
                    nft.priority.set(hook, priority);
                }
            }
            _ => {}
        }
    }
    nft
}

fn evidence(values: &Values<'_>) -> Evidence {
    let mut evidence = Evidence::default();
    for (path, held) in values.iter().filter_map(|(path, held)| Some((path.as_str(), held.last()?))) {
        match (path, &held.field.meaning) {
            ("lines", Meaning::Number(lines)) => evidence.lines = usize::try_from(*lines).unwrap_or(0),
            ("keep", Meaning::Span(keep)) => evidence.keep = *keep,
            ("accounts", Meaning::Text(how)) => {
                evidence.accounts = match how.as_str() {
                    "hash" => Accounts::Hash,
                    "none" => Accounts::None,
                    _ => Accounts::Plain,
                }
            }
            _ => {}
        }
    }
    evidence
}

fn daemon(values: &Values<'_>) -> Daemon {
    let mut daemon = Daemon::default();
    for (path, held) in values.iter().filter_map(|(path, held)| Some((path.as_str(), held.last()?))) {
        let Meaning::Text(text) = &held.field.meaning else { continue };
        match path {
            "socket" => daemon.socket = PathBuf::from(text),
            "readers" => daemon.readers = Some(text.clone()),
            "operators" => daemon.operators = Some(text.clone()),
            "state_dir" => daemon.state_dir = PathBuf::from(text),
            "log" => {
                daemon.log = match text.as_str() {
                    "stderr" => Log::Stderr,
                    "journal" => Log::Journal,
                    path => Log::File(PathBuf::from(path)),
                }
            }
            "loglevel" => {
                daemon.loglevel = Loglevel::ALL.into_iter().find(|level| level.name() == text).unwrap_or(Loglevel::Info)
            }
            _ => {}
        }
    }
    daemon
}
