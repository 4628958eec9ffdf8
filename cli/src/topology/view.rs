//! The picture of a host as text. Pure.

use super::devices::{DeviceUse, Owner};
use super::map::{CpuUse, Map, Use};
use crate::paint::{Paint, plain};

/// Widest line of cores.
const WIDTH: usize = 100;

/// The whole page: sockets and cells, their cores side by side, CPUs of a core in one pair of brackets.
pub fn render(map: &Map, paint: Paint) -> String {
    let others = others(map);
    let mut out = format!("{}\n", paint.bold(&headline(map)));
    for cell in map.cpus.chunk_by(|a, b| place(a) == place(b)) {
        let (socket, id) = place(&cell[0]);
        let mut about = format!("Socket {socket}, cell {id}");
        if let Some(summary) = map.cells.iter().find(|summary| summary.cell == id) {
            about.push_str(&format!(": {}", summary.memory));
            for pool in &summary.huge_pages {
                about.push_str(&format!(", {pool} huge pages"));
            }
        }
        out.push_str(&format!("\n{about}\n"));
        let cores = cell.chunk_by(|a, b| a.place.core == b.place.core);
        out.push_str(&wrap(cores.map(|core| draw_core(core, &others, paint))));
        // A cell may have CPUs of several sockets.
        let is_first = map.cpus.iter().find(|cpu| cpu.place.cell == id).map(place) == Some((socket, id));
        out.push_str(&draw_devices(map, |device| is_first && device.cell == Some(id), paint));
    }
    let of_no_cell = |device: &DeviceUse| map.cpus.iter().all(|cpu| Some(cpu.place.cell) != device.cell);
    if map.devices.iter().any(of_no_cell) {
        out.push_str("\nDevices of no cell\n");
        out.push_str(&draw_devices(map, of_no_cell, paint));
    }
    out.push_str(&format!("\n{}", legend(map, &others, paint)));
    out
}

fn headline(map: &Map) -> String {
    let mut sockets: Vec<_> = map.cpus.iter().map(|cpu| cpu.place.socket).collect();
    sockets.dedup();
    let cores = map.cpus.chunk_by(|a, b| (place(a), a.place.core) == (place(b), b.place.core)).count();
    let mut line = format!("Host {}: ", map.host);
    if !map.model.is_empty() {
        line.push_str(&format!("{}, ", plain(&map.model)));
    }
    line + &[
        counted(sockets.len(), "socket"),
        counted(map.cells.len(), "cell"),
        counted(cores, "core"),
        counted(map.cpus.len(), "CPU"),
    ]
    .join(", ")
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn place(cpu: &CpuUse) -> (u32, u32) {
    (cpu.place.socket, cpu.place.cell)
}

/// Other guests in the order they appear; a guest's letter is its place here.
fn others(map: &Map) -> Vec<&str> {
    let mut others = Vec::new();
    for cpu in &map.cpus {
        if let Use::Other { guest } = &cpu.use_
            && !others.contains(&guest.as_str())
        {
            others.push(guest.as_str());
        }
    }
    others
}

/// A core: its width on the screen, and what is drawn.
fn draw_core(core: &[CpuUse], others: &[&str], paint: Paint) -> (usize, String) {
    let cpus: Vec<_> = core.iter().map(|cpu| draw_cpu(cpu, others, paint)).collect();
    let width = cpus.iter().map(|(width, _)| width).sum::<usize>() + 3 * cpus.len() + 1;
    let texts: Vec<_> = cpus.into_iter().map(|(_, text)| text).collect();
    (width, format!("[ {} ]", texts.join(" | ")))
}

/// One line for each device.
fn draw_devices(map: &Map, wanted: impl Fn(&DeviceUse) -> bool, paint: Paint) -> String {
    let class = |device: &DeviceUse| device.device_class.clone().unwrap_or_else(|| "-".into());
    let widest = map.devices.iter().map(|device| class(device).len()).max().unwrap_or(0);
    let mut out = String::new();
    for device in map.devices.iter().filter(|device| wanted(device)) {
        let whose = match &device.owner {
            Owner::Guest { name } => paint.good(&format!("its {}", plain(name))),
            Owner::Other { guest } => format!("guest {}", plain(guest)),
            Owner::Taken => "taken".into(),
            Owner::Free => paint.dim("free"),
            Owner::Unusable { reason } => paint.warn(&format!("not usable: {}", plain(reason))),
        };
        out.push_str(&format!("  {} {} {:<widest$}  {whose}\n", plain(&device.address), device.id, class(device)));
    }
    out
}

fn draw_cpu(cpu: &CpuUse, others: &[&str], paint: Paint) -> (usize, String) {
    let mark = match &cpu.use_ {
        Use::Vcpu { index } => format!("v{index}"),
        Use::Emulator => "em".into(),
        Use::Shared => "~".into(),
        Use::Other { guest } => letters(others.iter().position(|other| other == guest).unwrap_or(0)),
        Use::HostOs => "·".into(),
    };
    let text = format!("{:>3} {mark:<4}", cpu.place.cpu);
    let width = text.chars().count();
    let painted = match cpu.use_ {
        Use::Vcpu { .. } => paint.good(&text),
        Use::Emulator | Use::Shared => paint.warn(&text),
        Use::Other { .. } => text,
        Use::HostOs => paint.dim(&text),
    };
    (width, painted)
}

/// A, B … Z, AA, AB …
fn letters(index: usize) -> String {
    let letter = char::from(b'A' + (index % 26) as u8);
    match index / 26 {
        0 => letter.to_string(),
        more => format!("{}{letter}", letters(more - 1)),
    }
}

/// Cores side by side as far as the width goes.
fn wrap(cores: impl Iterator<Item = (usize, String)>) -> String {
    let (mut out, mut used) = (String::new(), 0);
    for (width, core) in cores {
        if used > 0 && used + 1 + width > WIDTH {
            out.push('\n');
            used = 0;
        }
        out.push_str(if used == 0 { "  " } else { " " });
        out.push_str(&core);
        used += width + if used == 0 { 2 } else { 1 };
    }
    out + "\n"
}

fn legend(map: &Map, others: &[&str], paint: Paint) -> String {
    let any = |wanted: fn(&Use) -> bool| map.cpus.iter().any(|cpu| wanted(&cpu.use_));
    let mut out = format!("{}: {}\n", paint.bold(&format!("Guest {}", map.guest)), plain(&map.placement));
    if any(|u| matches!(u, Use::Vcpu { .. })) {
        out.push_str(&format!("  {}   its vCPU of that number\n", paint.good("vN")));
    }
    if any(|u| matches!(u, Use::Emulator)) {
        out.push_str(&format!("  {}   its engine's other threads\n", paint.warn("em")));
    }
    if any(|u| matches!(u, Use::Shared)) {
        out.push_str(&format!("  {}    shared by it, the HostOS and others\n", paint.warn("~")));
    }
    for (index, guest) in others.iter().enumerate() {
        out.push_str(&format!("  {:<4} guest {guest}\n", letters(index)));
    }
    if any(|u| matches!(u, Use::HostOs)) {
        out.push_str(&format!("  {}    the HostOS and whoever shares CPUs\n", paint.dim("·")));
    }
    out
}

#[cfg(test)]
mod tests;
