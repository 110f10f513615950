"use strict";
// The confusion matrix: drawn once in memory, one pixel a cell, then scaled onto the canvas.
(() => {
  const { names, order, cells } = JSON.parse(document.getElementById("cells").textContent);
  const canvas = document.getElementById("matrix");
  const said = document.getElementById("said");
  const count = names.length;
  const places = new Array(count);
  order.forEach((label, place) => { places[label] = place; });
  const images = new Float64Array(count * count);
  const totals = new Float64Array(count);
  for (let i = 0; i < cells.length; i += 3) {
    images[places[cells[i]] * count + places[cells[i + 1]]] = cells[i + 2];
    totals[places[cells[i]]] += cells[i + 2];
  }
  // viridis, at eighths
  const stops = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37]];
  const sheet = document.createElement("canvas");
  sheet.width = sheet.height = count;
  const pen = sheet.getContext("2d");
  const pixels = pen.createImageData(count, count);
  images.forEach((number, cell) => {
    const share = Math.sqrt(number / Math.max(totals[Math.floor(cell / count)], 1)) * 8;
    const low = Math.min(Math.floor(share), 7);
    stops[low].forEach((value, channel) => {
      pixels.data[4 * cell + channel] = value + (share - low) * (stops[low + 1][channel] - value);
    });
    pixels.data[4 * cell + 3] = 255;
  });
  pen.putImageData(pixels, 0, 0);
  canvas.width = canvas.height = count * Math.max(1, Math.ceil(1200 / count));
  const context = canvas.getContext("2d");
  const side = canvas.width / count;
  let row = 0;
  let column = 0;
  const show = (nextRow, nextColumn) => {
    row = Math.min(Math.max(nextRow, 0), count - 1);
    column = Math.min(Math.max(nextColumn, 0), count - 1);
    draw();
    const number = images[row * count + column];
    const share = totals[row] ? (100 * number / totals[row]).toFixed(1) : "0";
    const label = names[order[row]];
    said.textContent = row === column
      ? `${label}: ${number} of ${totals[row]} images are recognized, ${share} %`
      : `${label}, taken for ${names[order[column]]}: ${number} of ${totals[row]} images, ${share} %`;
  };
  const draw = (isChosen = true) => {
    context.imageSmoothingEnabled = false;
    context.drawImage(sheet, 0, 0, canvas.width, canvas.width);
    if (!isChosen) return;
    context.lineWidth = 2;
    context.strokeStyle = "#fff8";
    context.strokeRect(0, row * side, canvas.width, side);
    context.strokeRect(column * side, 0, side, canvas.width);
    context.lineWidth = 4;
    context.strokeStyle = "#ff4d6d";
    context.strokeRect(column * side - 2, row * side - 2, side + 4, side + 4);
  };
  const point = (event) => {
    const box = canvas.getBoundingClientRect();
    const to = (offset, length) => Math.floor(offset / length * count);
    show(to(event.clientY - box.top, box.height), to(event.clientX - box.left, box.width));
  };
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("focus", () => show(row, column));
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [-count, -count], End: [count, count] };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    show(row + move[0], column + move[1]);
  });
  draw(false);
})();
