'use strict';
// Whatever comes from a program in a sandbox is put in place as text (`textContent`), never as HTML.
(() => {
const ROW = 28;            // Pixels of a row of flows, as the style has it.
const EVERY = 1000;        // Milliseconds between two questions, as often as the gateway tells what flows have moved.
const STILL = 3000;        // The same about a run that has ended, and about which runs there are.
const MAX_CLOSED = 1000;   // Closed flows that are kept.
const SAMPLES = 30;        // Rates of one flow that are kept: half a minute.
const SECONDS = 120;

const $ = id => document.getElementById(id);
const SVG = 'http://www.w3.org/2000/svg';

// ---- who we are ----------------------------------------------------------------------------------------------------

// The key came with the page that the token opened; a tab keeps it for itself, and so it is lost with its tab.
let key = null;
const given = document.querySelector('meta[name=key]');
if (given) {
	key = given.content;
	given.remove();
	sessionStorage.setItem('key', key);
	// The token is void, and of no use in the history.
	history.replaceState(null, '', '/' + location.hash);
} else {
	key = sessionStorage.getItem('key');
}

class Refused extends Error {}

async function ask(path, change) {
	const headers = { 'X-Cofferdam-Key': key };
	if (change) headers['Content-Type'] = 'application/json';
	const answer = await fetch(path, {
		method: change ? 'POST' : 'GET', headers, body: change && JSON.stringify(change), cache: 'no-store',
	});
	if (answer.status === 403) throw new Refused();
	const said = await answer.json();
	if (!answer.ok) throw Object.assign(new Error(said.error), { status: answer.status });
	return said;
}

// ---- small things ---------------------------------------------------------------------------------------------------

function text(node, words) { if (node.textContent !== words) node.textContent = words; }
function make(tag, name) { const node = document.createElement(tag); if (name) node.className = name; return node; }
function draw(tag, values) {
	const node = document.createElementNS(SVG, tag);
	for (const [name, value] of Object.entries(values ?? {})) node.setAttribute(name, value);
	return node;
}
function notice(words) { text($('notice'), words ?? ''); $('notice').hidden = !words; }
function say(words) { text($('status'), words); }

function size(bytes) {
	let unit = 0;
	while (bytes >= 1000 && unit < 4) { bytes /= 1024; unit += 1; }
	return `${unit && bytes < 100 ? bytes.toFixed(1) : Math.round(bytes)} ${['B', 'KiB', 'MiB', 'GiB', 'TiB'][unit]}`;
}
const speed = bytes => bytes ? `${size(bytes)}/s` : '';
const count = (number, one, more) => `${number.toLocaleString('en')} ${number === 1 ? one : more ?? one + 's'}`;

// Makes the children of a node those of a list: what is there already stays what it is, and keeps the focus.
function list(parent, items, keyOf, create, update) {
	const before = parent.byKey ?? new Map(), after = new Map();
	for (const item of items) after.set(keyOf(item), item);
	for (const [name, node] of before) if (!after.has(name)) { node.remove(); before.delete(name); }
	// Nothing is moved under somebody's hands.
	const holds = parent.contains(document.activeElement);
	const names = holds ? [...new Set([...before.keys(), ...after.keys()])] : [...after.keys()];
	const kept = new Map();
	names.forEach((name, place) => {
		const item = after.get(name), node = before.get(name) ?? create(item);
		update(node, item);
		kept.set(name, node);
		if (parent.children[place] !== node) parent.insertBefore(node, parent.children[place] ?? null);
	});
	parent.byKey = kept;
}

// ---- which runs there are -------------------------------------------------------------------------------------------

let shown = null;          // The id of the run that is shown.

async function overview() {
	const all = await ask('/api/overview');
	$('sandboxes-part').hidden = all.sandboxes.length === 0;
	list($('sandboxes'), all.sandboxes, one => one.name, () => {
		const node = make('li');
		node.append(make('span'));
		return node;
	}, (node, one) => text(node.firstChild, `${one.name}: ${one.state}`));
	list($('runs'), all.runs, one => one.id, one => {
		const node = make('li'), button = make('button');
		button.type = 'button';
		button.append(make('b'), make('span', 'faint'));
		button.addEventListener('click', () => choose(one.id));
		node.append(button);
		return node;
	}, (node, one) => {
		const button = node.firstChild, [name, about] = button.children;
		text(name, one.sandbox ? `${one.sandbox}: ${one.command || one.kind}` : one.command || one.kind);
		const ended = one.state === 'ended' ? `exit ${one.exit_status}` : one.state;
		text(about, `${one.started.slice(5, 19).replace('T', ' ')}, ${ended}${one.denied ? `, ${one.denied} denied` : ''}`);
		if (one.id === shown) button.setAttribute('aria-current', 'true'); else button.removeAttribute('aria-current');
	});
	text($('runs-more'), all.more ? `${all.more} older ones: cofferdam log` : '');
	$('none').hidden = all.runs.length > 0 || shown !== null;
	if (shown === null) {
		const wanted = location.hash.slice(1);
		const first = all.runs.find(one => one.id === wanted) ?? all.runs.find(one => one.state === 'running') ?? all.runs[0];
		if (first) choose(first.id);
	}
}

function choose(id) {
	if (id === shown) return;
	shown = id;
	history.replaceState(null, '', '#' + id);
	flows.clear();
	closed.length = 0;
	revision = 0;
	told = null;
	drawn = '';
	rows = [];
	$('denied-rows').replaceChildren();
	$('denied-rows').byKey = undefined;
	$('view').scrollTop = 0;
	notice();
	for (const button of $('runs').querySelectorAll('button')) button.removeAttribute('aria-current');
	$('runs').byKey?.get(id)?.firstChild.setAttribute('aria-current', 'true');
	soon();
}

// ---- the run that is shown ------------------------------------------------------------------------------------------

const flows = new Map();   // By id.
const closed = [];         // Ids of closed ones, in the order in which they were told.
let revision = 0;          // What of it we have seen.
let told = null;           // The last answer.

async function look() {
	const id = shown;
	let said;
	try {
		said = await ask(`/api/run?run=${encodeURIComponent(id)}&since=${revision}`);
	} catch (error) {
		if (error.status === undefined) throw error;
		if (id === shown) {
			notice(error.message);
			if (told) told.run.state = 'removed';
		}
		return;
	}
	// Another one was chosen meanwhile.
	if (id !== shown) return;
	const before = told?.run.state;
	take(said);
	told = said;
	$('run').hidden = false;
	$('none').hidden = true;
	showRun(said, before);
	showChart(said);
	showDenied(said);
	showTalks(said);
	arrange();
}

function take(said) {
	if (said.behind) return;
	if (said.all) { flows.clear(); closed.length = 0; }
	revision = said.revision;
	const moving = new Set();
	// Closed ones come youngest first; they are kept oldest first.
	for (const flow of said.all ? [...said.flows].reverse() : said.flows) {
		const known = flows.get(flow.id);
		flow.rates = known?.rates ?? [];
		flow.rates.push(flow.rate[0] + flow.rate[1]);
		if (flow.rates.length > SAMPLES) flow.rates.shift();
		moving.add(flow.id);
		if (flow.end !== null && known?.end == null) closed.push(flow.id);
		flow.words = [...flow.names, flow.address, flow.program ?? '', flow.protocol].join('\n').toLowerCase();
		flows.set(flow.id, flow);
	}
	while (closed.length > MAX_CLOSED) flows.delete(closed.shift());
	let open = 0;
	for (const [id, flow] of flows) {
		if (flow.end !== null) continue;
		// The oldest of too many made room.
		if (said.oldest === null || id < said.oldest) { flows.delete(id); continue; }
		open += 1;
		if (!moving.has(id) && flow.rates.at(-1) !== 0) { flow.rates.push(0); if (flow.rates.length > SAMPLES) flow.rates.shift(); }
	}
	// More came to their end than are remembered: begin anew.
	if (open !== said.open) revision = 0;
}

function showRun(said, before) {
	const { run } = said;
	text($('title'), run.sandbox ? `${run.sandbox}: ${run.command || run.kind}` : run.command || run.kind);
	const ended = run.exit_status === null || run.exit_status === undefined ? 'ended' : `exit ${run.exit_status}`;
	const state = { running: 'running', ended, died: 'died: its supervisor was killed, or its end found no room', removed: 'record removed' }[run.state];
	text($('state'), state);
	$('state').className = `badge ${run.state}`;
	text($('numbers'), said.behind ? `reading the record: ${said.events.toLocaleString('en')} events so far`
		: `${count(said.open, 'open flow')}${said.unlisted ? ` and ${said.unlisted} more` : ''} of ${said.opened.toLocaleString('en')}, `
		+ `${said.failed.toLocaleString('en')} failed, ${said.denied_flows.toLocaleString('en')} denied; `
		+ `${count(said.look_ups, 'look-up')}, ${said.denied_look_ups.toLocaleString('en')} denied; `
		+ `${size(said.moved[0])} sent, ${size(said.moved[1])} received`);
	list($('missing'), said.missing, one => one, () => make('li'), (node, one) => text(node, `Missing: ${one}`));
	if (before === run.state) return;
	if (run.state === 'removed') {
		notice('The record of this run was removed while it was shown. What is here is what was read before; choose another run on the left.');
	} else if (before === 'running') {
		say(`The run has ended: ${state}.`);
	}
}

function showChart(said) {
	const byTime = new Map(said.history.map(one => [one[0], one]));
	const most = Math.max(1000, ...said.history.map(one => Math.max(one[1], one[2])));
	const x = place => (place / (SECONDS - 1) * 600).toFixed(1), y = bytes => (86 - bytes / most * 80).toFixed(1);
	const parts = { in: [], out: [], no: [] };
	for (let place = 0; place < SECONDS; place += 1) {
		// The second that goes on is not over yet.
		const [, out, into, , denied] = byTime.get(said.second - SECONDS + place) ?? [0, 0, 0, 0, 0];
		parts.in.push(`${x(place)},${y(into)}`);
		parts.out.push(`${x(place)},${y(out)}`);
		if (denied) parts.no.push(`M${x(place)},90V${(90 - Math.min(30, 8 + 4 * denied)).toFixed(1)}`);
	}
	const [into, out, no] = $('chart').children;
	into.setAttribute('d', `M0,86L${parts.in.join('L')}L600,86`);
	out.setAttribute('d', `M${parts.out.join('L')}`);
	no.setAttribute('d', parts.no.join(''));
	text($('chart-most'), `at most ${speed(most)}`);
	$('chart').setAttribute('aria-label', `Received ${speed(said.rate[1]) || 'nothing'}, sent ${speed(said.rate[0]) || 'nothing'} at the moment`);
}

// ---- what was denied ------------------------------------------------------------------------------------------------

function showDenied(said) {
	$('denied').hidden = said.denied.length === 0;
	$('denied-none').hidden = said.denied.length > 0;
	text($('denied-more'), said.denied_more ? `And ${said.denied_more} more targets: cofferdam log ${said.run.id} --summary` : '');
	const keyOf = row => JSON.stringify([row.what, row.rule, row.look_up_again]);
	list($('denied-rows'), said.denied, keyOf, row => {
		const node = make('tr');
		for (let cell = 0; cell < 6; cell += 1) node.append(make('td', cell === 1 ? 'number' : ''));
		node.children[4].append(make('code'));
		const button = make('button');
		button.type = 'button';
		button.textContent = 'Allow…';
		button.setAttribute('aria-label', `Allow ${row.what}`);
		button.addEventListener('click', () => propose(node.row));
		node.children[5].append(button);
		return node;
	}, (node, row) => {
		node.row = row;
		text(node.children[0], row.what);
		text(node.children[1], row.count.toLocaleString('en'));
		text(node.children[2], row.rule);
		text(node.children[3], row.programs.join(', '));
		text(node.children[4].firstChild, row.allow_with ?? (row.look_up_again ? 'nothing: the program has to look the name up again' : 'no rule of the run'));
		node.children[5].firstChild.hidden = said.run.state !== 'running' || !row.allow_rule;
	});
}

let proposed = null;

// The rule is shown first, as it will be; nothing is changed until somebody says yes to that.
async function propose(row) {
	const mine = proposed = { run: shown, rule: row.allow_rule };
	text($('ask-title'), `Allow ${row.what}?`);
	const stays = told.run.sandbox !== null;
	text($('ask-where'), stays ? 'This rule is put in front of those of the sandbox, and stays there:' : 'This rule is put in front of the run\'s own, until it ends:');
	text($('ask-yes'), stays ? 'Allow for this sandbox' : 'Allow for this run');
	text($('ask-rule'), row.allow_rule);
	text($('ask-flag'), row.allow_with ? `For the next run: ${row.allow_with}` : '');
	text($('ask-remark'), '');
	text($('ask-error'), '');
	$('ask-yes').disabled = true;
	$('ask').showModal();
	$('ask-no').focus();
	try {
		const { rule, remark } = await ask('/api/propose', mine);
		if (mine !== proposed || !$('ask').open) return;
		text($('ask-rule'), rule);
		text($('ask-remark'), remark ?? '');
		$('ask-yes').disabled = false;
		$('ask-yes').focus();
	} catch (error) {
		if (mine === proposed) text($('ask-error'), why(error));
	}
}

const why = error => error.status === undefined ? 'cofferdam ui does not answer; nothing was changed' : error.message;

$('ask-no').addEventListener('click', () => $('ask').close());
$('ask-yes').addEventListener('click', async () => {
	$('ask-yes').disabled = true;
	text($('ask-error'), '');
	try {
		const { said } = await ask('/api/allow', proposed);
		$('ask').close();
		say(said);
	} catch (error) {
		text($('ask-error'), why(error));
		$('ask-no').focus();
	}
});

// ---- flows ----------------------------------------------------------------------------------------------------------

let rows = [];             // What the filter lets through, as it is shown: open ones first, the youngest first.

function arrange() {
	const wanted = $('filter').value.trim().toLowerCase();
	rows = [...flows.values()].filter(flow => !wanted || flow.words.includes(wanted));
	rows.sort((a, b) => (a.end !== null) - (b.end !== null) || b.id - a.id);
	$('space').style.height = `${rows.length * ROW}px`;
	$('view').style.height = `${Math.min(15, Math.max(3, rows.length)) * ROW}px`;
	$('flows').setAttribute('aria-rowcount', rows.length + 1);
	text($('flows-count'), `${count(rows.length, 'flow')}${wanted ? ` of ${flows.size.toLocaleString('en')}` : ''}`);
	fill();
}

// Of all rows only those are there that can be seen.
function fill() {
	const view = $('view'), space = $('space');
	const first = Math.max(0, Math.floor(view.scrollTop / ROW) - 2);
	const some = rows.slice(first, first + Math.ceil(view.clientHeight / ROW) + 4);
	while (space.children.length < some.length) {
		const row = make('div', 'row');
		row.setAttribute('role', 'row');
		for (let cell = 0; cell < 9; cell += 1) {
			const node = make('span', cell >= 3 && cell <= 6 ? 'number' : '');
			node.setAttribute('role', 'cell');
			row.append(node);
		}
		const spark = draw('svg', { viewBox: '0 0 60 18', 'aria-hidden': 'true' });
		spark.append(draw('polyline'));
		row.children[7].append(spark);
		space.append(row);
	}
	while (space.children.length > some.length) space.lastChild.remove();
	some.forEach((flow, place) => {
		const row = space.children[place], cells = row.children, at = first + place;
		row.style.transform = `translateY(${at * ROW}px)`;
		row.setAttribute('aria-rowindex', at + 2);
		row.classList.toggle('ended', flow.end !== null);
		const name = flow.names[0], port = flow.port === null ? '' : `:${flow.port}`;
		text(cells[0], `${flow.ingress ? 'to port ' : ''}${name ? name + port : flow.address} ${flow.protocol}`);
		row.title = `${[...flow.names, flow.address].join(', ')}; allowed by ${flow.rule}`;
		text(cells[1], flow.program === null ? '' : `${flow.program} ${flow.pid}`);
		text(cells[2], flow.opened);
		text(cells[3], size(flow.moved[0]));
		text(cells[4], size(flow.moved[1]));
		text(cells[5], speed(flow.end === null && flow.rates.at(-1) ? flow.rate[0] : 0));
		text(cells[6], speed(flow.end === null && flow.rates.at(-1) ? flow.rate[1] : 0));
		text(cells[8], flow.end === null ? 'open' : flow.end.replaceAll('_', ' '));
		const most = Math.max(1, ...flow.rates), from = SAMPLES - flow.rates.length;
		const points = flow.rates.map((rate, index) => `${((from + index) * 60 / (SAMPLES - 1)).toFixed(1)},${(17 - rate / most * 16).toFixed(1)}`);
		const line = cells[7].firstChild.firstChild, all = points.join(' ');
		if (line.getAttribute('points') !== all) line.setAttribute('points', all);
	});
}

let waiting = false;
$('view').addEventListener('scroll', () => {
	if (waiting) return;
	waiting = true;
	requestAnimationFrame(() => { waiting = false; fill(); });
}, { passive: true });
addEventListener('resize', fill);
$('filter').addEventListener('input', arrange);

// ---- who talks to whom ----------------------------------------------------------------------------------------------

let drawn = '';

function showTalks(said) {
	const all = JSON.stringify(said.talks);
	if (all === drawn) return;
	drawn = all;
	const STEP = 26, WIDTH = 900;
	const programs = [...new Set(said.talks.map(one => one.program))], peers = [...new Set(said.talks.map(one => one.peer))];
	const height = Math.max(programs.length, peers.length, 1) * STEP + 14;
	const place = (names, name) => 20 + (names.indexOf(name) + .5) * (height - 20) / names.length - STEP / 4;
	const picture = $('drawing');
	picture.setAttribute('viewBox', `0 0 ${WIDTH} ${height}`);
	picture.style.maxHeight = `${height * 1.4}px`;
	const parts = [];
	const line = (one, kind, heavy, off, words) => {
		const a = place(programs, one.program) - 4 + off, b = place(peers, one.peer) - 4 + off;
		const path = draw('path', { d: `M200,${a}C380,${a} 380,${b} 560,${b}`, class: kind, 'stroke-width': heavy.toFixed(1) });
		const title = draw('title');
		title.textContent = `${one.program ?? 'unknown'} to ${one.peer}: ${words}`;
		path.append(title);
		parts.push(path);
	};
	for (const one of said.talks) {
		const bytes = one.moved[0] + one.moved[1];
		if (one.flows) line(one, 'yes', 1 + Math.log10(1 + bytes) / 2, 0, `${count(one.flows, 'flow')}, ${size(bytes)}`);
		if (one.denied) line(one, 'no', 1.5, one.flows ? 4 : 0, `denied ${count(one.denied, 'time')}`);
	}
	const label = (x, y, anchor, words) => {
		const node = draw('text', { x, y, 'text-anchor': anchor });
		node.textContent = words.length > 46 ? `${words.slice(0, 45)}…` : words;
		parts.push(node);
	};
	for (const program of programs) label(192, place(programs, program), 'end', program ?? 'unknown');
	for (const peer of peers) label(568, place(peers, peer), 'start', peer);
	picture.replaceChildren(...parts);
	text($('talks-more'), said.talks_more ? `And ${said.talks_more} more.` : said.talks.length ? '' : 'Nobody yet.');
	list($('talks-rows'), said.talks, one => JSON.stringify([one.program, one.peer]), () => {
		const node = make('tr');
		for (let cell = 0; cell < 6; cell += 1) node.append(make('td', cell > 1 ? 'number' : ''));
		return node;
	}, (node, one) => {
		const cells = [one.program ?? 'unknown', one.peer, one.flows.toLocaleString('en'), one.denied.toLocaleString('en'), size(one.moved[0]), size(one.moved[1])];
		cells.forEach((words, cell) => text(node.children[cell], words));
	});
}

// ---- going on -------------------------------------------------------------------------------------------------------

let timer = null, isAsking = false, isOver = false, lastOverview = 0;

function soon(after = 0) {
	clearTimeout(timer);
	if (!isOver) timer = setTimeout(turn, after);
}

async function turn() {
	if (isAsking) return;
	isAsking = true;
	let after = STILL;
	const asked = shown;
	try {
		if (performance.now() - lastOverview >= STILL || shown === null) {
			await overview();
			lastOverview = performance.now();
		}
		if (shown !== null) {
			await look();
			if (told?.behind) after = 0;
			else if (told?.run.state === 'running') after = EVERY;
			else if (told?.run.state === 'removed') after = STILL;
		}
		if ($('status').textContent === GONE) say('');
	} catch (error) {
		if (error instanceof Refused) {
			isOver = true;
			notice('cofferdam ui has ended, and another one answers: open the link that it has printed.');
			say('Not connected');
		} else {
			say(GONE);
		}
	}
	isAsking = false;
	// Nobody looks at a page that is hidden.
	if (document.hidden) return;
	soon(asked === shown ? after : 0);
}

const GONE = 'cofferdam ui does not answer: it has ended, or is busy. Nothing here is new.';
document.addEventListener('visibilitychange', () => { if (!document.hidden) soon(); });

if (key === null) {
	notice('This page is open in another tab or window, or was: go there. If that is closed, end cofferdam ui (Ctrl-C) and start it again: it prints a new link.');
} else {
	$('all').hidden = false;
	soon();
}
})();
