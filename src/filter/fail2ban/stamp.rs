//! What instant the fields of a date mean, as fail2ban takes them.
//!
//! Without a year: this one, or the last if that were more than a day ahead. Only a time of day: today, or yesterday if that is
//! yet to come. Years of two digits are of this century. A zone that stands in the line wins over the log's. What is
//! no date (30 February, second 60) means nothing. Fractions are dropped.

use jiff::civil::{Date, DateTime, Time as OfDay};
use jiff::tz::TimeZone;

use crate::terms::Time;

/// A field of a date, by the letter strptime(3) gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Year,
    ShortYear,
    Month,
    MonthName,
    Day,
    Hour,
    Hour12,
    Noon,
    Minute,
    Second,
    WeekdayName,
    Weekday,
    DayOfYear,
    WeekFromSunday,
    WeekFromMonday,
    Zone,
}

impl Field {
    /// The field whose text a group of this name holds.
    pub fn of(group: &str) -> Option<Field> {
        Some(match group {
            "Y" => Field::Year,
            "y" => Field::ShortYear,
            "m" => Field::Month,
            "b" | "B" => Field::MonthName,
            "d" => Field::Day,
            "H" => Field::Hour,
            "I" => Field::Hour12,
            "p" => Field::Noon,
            "M" => Field::Minute,
            "S" => Field::Second,
            "a" | "A" => Field::WeekdayName,
            "w" => Field::Weekday,
            "j" => Field::DayOfYear,
            "U" => Field::WeekFromSunday,
            "W" => Field::WeekFromMonday,
            "z" | "Z" => Field::Zone,
            _ => return None,
        })
    }
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// The instant of these fields; dates that name no zone are local to `zone`.
pub(crate) fn mean<'t>(fields: impl Iterator<Item = (Field, &'t str)>, zone: &TimeZone, now: Time) -> Option<Time> {
    let (mut year, mut month, mut day) = (None, None, None);
    let (mut hour, mut hour12, mut minute, mut second, mut afternoon) = (0, None, 0, 0, false);
    let (mut weekday, mut of_year, mut week, mut offset) = (None, None, None, None);
    let named = |names: &[&str], text: &str| {
        let head = text.get(..3)?.to_ascii_lowercase();
        names.iter().position(|name| *name == head).map(|at| at as i64)
    };
    for (field, text) in fields {
        let number = || text.trim().parse::<i64>().ok();
        match field {
            Field::Year => year = Some(number()?),
            Field::ShortYear => year = Some(number().map(|y| if y <= 2000 { y + 2000 } else { y })?),
            Field::Month => month = Some(number()?),
            Field::MonthName => month = Some(named(&MONTHS, text)? + 1),
            Field::Day => day = Some(number()?),
            Field::Hour => hour = number()?,
            Field::Hour12 => hour12 = Some(number()?),
            Field::Noon => afternoon = text.eq_ignore_ascii_case("pm"),
            Field::Minute => minute = number()?,
            Field::Second => second = number()?,
            Field::WeekdayName => weekday = Some(named(&WEEKDAYS, text)?),
            // strptime counts from Sunday, we from Monday.
            Field::Weekday => weekday = Some((number()? + 6) % 7),
            Field::DayOfYear => of_year = Some(number()?),
            Field::WeekFromSunday => week = Some((number()?, 6)),
            Field::WeekFromMonday => week = Some((number()?, 0)),
            Field::Zone => offset = zone_offset(text),
        }
    }
    if let Some(hour12) = hour12 {
        hour = hour12 % 12 + if afternoon { 12 } else { 0 };
    }
    let local_now = jiff::Timestamp::from_microsecond(now.0).ok()?.to_zoned(zone.clone()).date();
    let assumed_year = year.is_none();
    // The calendar begins with the year 1.
    let mut year = i16::try_from(year.unwrap_or(i64::from(local_now.year()))).ok().filter(|year| *year > 0)?;
    if month.is_none() || day.is_none() {
        if let (None, Some((week, starts)), Some(weekday)) = (of_year, week, weekday) {
            // Days before the first Sunday (or Monday) of a year are in its week 0.
            let first = i64::from(Date::new(year, 1, 1).ok()?.weekday().to_monday_zero_offset());
            let (first, weekday) = ((first + 7 - starts) % 7, (weekday + 7 - starts) % 7);
            let before = (7 - first) % 7;
            of_year = Some(if week == 0 { 1 + weekday - first } else { 1 + before + 7 * (week - 1) + weekday });
        }
        if let Some(of_year) = of_year {
            let span = jiff::Span::new().try_days(of_year.checked_sub(1)?).ok()?;
            let date = Date::new(year, 1, 1).ok()?.checked_add(span).ok()?;
            (year, month, day) = (date.year(), Some(i64::from(date.month())), Some(i64::from(date.day())));
        }
    }
    let small = |number: i64| i8::try_from(number).ok();
    let of_day = OfDay::new(small(hour)?, small(minute)?, small(second)?, 0).ok()?;
    let instant = |date: Date| -> Option<Time> {
        let local = DateTime::from_parts(date, of_day);
        let zone = match offset {
            Some(offset) => TimeZone::fixed(jiff::tz::Offset::from_seconds(offset).ok()?),
            None => zone.clone(),
        };
        zone.to_ambiguous_timestamp(local).compatible().ok().map(|t| Time::from_secs(t.as_second()))
    };
    match (month, day) {
        (None, None) => {
            let date = Date::new(year, local_now.month(), local_now.day()).ok()?;
            let time = instant(date)?;
            if time > now { instant(date.yesterday().ok()?) } else { Some(time) }
        }
        (Some(month), Some(day)) => {
            let (month, day) = (small(month)?, small(day)?);
            let time = instant(Date::new(year, month, day).ok()?)?;
            if assumed_year && time.0 > now.0 + 86_400_000_000 {
                return instant(Date::new(year.checked_sub(1)?, month, day).ok()?);
            }
            Some(time)
        }
        _ => None,
    }
}

/// Seconds east of UTC of `Z`, `UTC`, `CET`, `+0200`, `-07:00`, `+01`, `UTC+0200`; `None` for a zone nobody knows.
pub(crate) fn zone_offset(text: &str) -> Option<i32> {
    let sign = text.find(['+', '-']).unwrap_or(text.len());
    let (name, numbers) = text.split_at(sign);
    let base = if name.is_empty() { 0 } else { abbreviation(name)? };
    if numbers.is_empty() {
        return (!name.is_empty()).then_some(base);
    }
    let digits: String = numbers[1..].chars().filter(|c| *c != ':').collect();
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<i32>().ok());
    let seconds = match digits.len() {
        2 => number(digits.get(..2))? * 3600,
        4 => number(digits.get(..2))? * 3600 + number(digits.get(2..))? * 60,
        _ => return None,
    };
    Some(base + if numbers.starts_with('-') { -seconds } else { seconds })
}

/// Seconds east of UTC of a zone's abbreviation. Some are used for several zones in the world; of these the one that fail2ban
/// takes. None knows summer time by itself. Single letters are those of ships and soldiers.
fn abbreviation(name: &str) -> Option<i32> {
    /// Tenths of hours would not do: Nepal is at 5:45.
    const ZONES: [(i32, &str); 35] = [
        (-720, "Y"),
        (-660, "X NUT SST"),
        (-600, "W CKT HAST HST TAHT TKT"),
        (-570, "MART MIT"),
        (-540, "V AKST GAMT GIT HADT HNY"),
        (-480, "U AKDT CIST HAY HNP PST PT"),
        (-420, "T HAP HNR MST PDT"),
        (-360, "S CST EAST GALT HAR HNC MDT"),
        (-300, "R CDT COT EASST ECT EST ET HAC HNE PET"),
        (-270, "HLV VET"),
        (-240, "Q AST BOT CLT COST EDT FKT GYT HAE HNA PYT"),
        (-210, "HNT NST NT"),
        (-180, "P ADT ART BRT CLST FKST GFT HAA PMST PYST SRT UYT WGT"),
        (-150, "HAT NDT"),
        (-120, "O BRST FNT PMDT UYST WGST"),
        (-60, "N AZOT CVT EGT"),
        (0, "Z EGST GMT UTC WET WT"),
        (60, "A BST CET DFT MET WAT WEDT WEST"),
        (120, "B CAT CEDT CEST EET MEST SAST WAST"),
        (180, "C EAT EEDT EEST IDT MSK"),
        (210, "IRST"),
        (240, "D AMT AZT GET GST KUYT MSD MUT RET SAMT SCT"),
        (270, "AFT IRDT"),
        (300, "E AMST AQTT AZST HMT MAWT MVT PKT TFT TJT TMT UZT YEKT"),
        (330, "SLT"),
        (345, "NPT"),
        (360, "F ALMT BIOT BTT IOT KGT NOVT OMST YEKST"),
        (390, "CCT MMT"),
        (420, "G CXT DAVT HOVT ICT KRAT NOVST OMSST THA WIB"),
        (480, "H ACT AWST BDT BNT CAST HKT IRKT KRAST MYT PHT SGT ULAT WITA WST"),
        (540, "I AWDT IRKST JST KST PWT TLT WDT WIT YAKT"),
        (570, "ACST"),
        (600, "K AEST CHST PGT VLAT YAKST YAPT"),
        (660, "L AEDT LHDT MAGT NCT PONT SBT VLAST VUT"),
        (720, "M ANAST ANAT FJT GILT MAGST MHT NZST PETST PETT TVT WFT"),
    ];
    let upper = name.to_ascii_uppercase();
    let late = match upper.as_str() {
        "FJST" | "NZDT" => Some(780),
        "NFT" => Some(690),
        "ACDT" | "LHST" => Some(630),
        _ => None,
    };
    let of = |(_, names): &&(i32, &str)| names.split(' ').any(|known| known == upper);
    late.or_else(|| ZONES.iter().find(of).map(|(minutes, _)| *minutes)).map(|minutes| minutes * 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-01-15T12:00:00Z
    const NOW: Time = Time::from_secs(1_768_478_400);

    fn meant(fields: &str) -> Option<i64> {
        let of = |field: &str| field.split_once('=').map(|(name, text)| (name.to_owned(), text.to_owned()));
        let fields: Vec<(String, String)> = fields.split(';').filter_map(of).collect();
        let fields = fields.iter().filter_map(|(name, text)| Some((Field::of(name)?, text.as_str())));
        mean(fields, &TimeZone::UTC, NOW).map(Time::secs)
    }

    #[test]
    fn dates_mean_what_fail2ban_takes_them_for() {
        let table = [
            ("Y=2026;m=1;d=14;H=21;M=59;S=59", Some(1_768_427_999)),
            ("Y=2026;m=1;d=14;H=21;M=59;S=59;z=+0200", Some(1_768_420_799)),
            ("b=Jan;d=16;H=11;M=59;S=0", Some(1_768_564_740)),
            ("b=Jan;d=16;H=12;M=1;S=0", Some(1_737_028_860)),
            ("b=February;d=29;H=0;M=0;S=0", None),
            ("H=21;M=59;S=59", Some(1_768_427_999)),
            ("H=11;M=59;S=59", Some(1_768_478_399)),
            ("y=26;m=01;d=14;H=1;M=46;S=11", Some(1_768_355_171)),
            ("b=Jan;d=14;Y=2026;I=12;M=0;S=1;p=AM", Some(1_768_348_801)),
            ("b=Jan;d=14;Y=2026;I=12;M=0;S=1;p=pm", Some(1_768_392_001)),
            ("Z=PDT;b=Jan;d=14;H=21;M=5;S=29", Some(1_768_449_929)),
            ("Z=NOPE;b=Jan;d=14;H=21;M=5;S=29", Some(1_768_424_729)),
            ("Y=2026;j=14;H=0;M=0;S=0", Some(1_768_348_800)),
            ("Y=2026;W=02;a=Wed;H=0;M=0;S=0", Some(1_768_348_800)),
            ("Y=2026;U=02;w=3;H=0;M=0;S=0", Some(1_768_348_800)),
            ("Y=2026;m=2;d=30;H=0;M=0;S=0", None),
            ("Y=2026;m=1;d=14;H=0;M=0;S=60", None),
            ("m=1;H=0", None),
            ("Y=0000;m=12;d=30;H=0;M=0;S=0", None),
        ];
        for (fields, expected) in table {
            assert_eq!(meant(fields), expected, "{fields}");
        }
    }

    #[test]
    fn zones_have_offsets() {
        let table = [
            ("Z", Some(0)),
            ("CET", Some(3600)),
            ("NPT", Some(20_700)),
            ("+01", Some(3600)),
            ("-07:30", Some(-27_000)),
            ("UTC+0200", Some(7200)),
            ("NOPE", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(zone_offset(text), expected, "{text}");
        }
    }
}
