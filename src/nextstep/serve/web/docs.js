// The service's OpenAPI document as a page, with nothing loaded from elsewhere.
import { json } from './api.js';
import { html, render } from './ui.js';

const resolved = (document, schema) => (schema?.$ref
  ? document.components.schemas[schema.$ref.split('/').pop()] : schema);

function kindOf(document, schema) {
  const found = resolved(document, schema) || {};
  const options = found.anyOf || found.oneOf;
  if (options) return [...new Set(options.map((one) => kindOf(document, one)))].filter((k) => k !== 'null').join(' or ');
  if (found.enum) return found.enum.join(', ');
  if (found.type === 'array') return `list of ${kindOf(document, found.items)}`;
  const least = found.minimum ?? found.exclusiveMinimum;
  const range = least !== undefined && found.maximum !== undefined ? `, ${least} to ${found.maximum}` : '';
  return `${found.const || found.title?.replace(/[A-Z]/g, ' $&').trim().toLowerCase() || found.type || 'anything'}${range}`;
}

function Fields({ document, schema }) {
  const found = resolved(document, schema);
  if (!found?.properties) return null;
  const needed = new Set(found.required || []);
  return html`
    <dl class="fields">
      ${Object.entries(found.properties).map(([name, field]) => html`
        <div key=${name}>
          <dt><code>${name}</code>${needed.has(name) ? '' : html` <span class="hint">optional</span>`}</dt>
          <dd><span class="hint">${kindOf(document, field)}</span> ${field.description || ''}</dd>
        </div>
      `)}
    </dl>
  `;
}

function Operation({ document, path, method, operation }) {
  const content = operation.requestBody?.content || {};
  const [kind, body] = Object.entries(content)[0] || [];
  const example = resolved(document, body?.schema)?.examples?.[0];
  return html`
    <details class="operation">
      <summary><code class="method">${method.toUpperCase()}</code> <code>${path}</code>
        <span>${operation.description?.split('\n')[0] || operation.summary}</span></summary>
      <p>${operation.description}</p>
      ${operation.parameters?.length > 0 && html`
        <dl class="fields">
          ${operation.parameters.map((one) => html`
            <div key=${one.name}><dt><code>${one.name}</code> <span class="hint">in the ${one.in}</span></dt>
              <dd>${one.description || kindOf(document, one.schema)}</dd></div>
          `)}
        </dl>
      `}
      ${body && html`<h3>Body, <code>${kind}</code></h3><${Fields} document=${document} schema=${body.schema} />`}
      ${example && html`<pre>${JSON.stringify(example, null, 2)}</pre>`}
      <h3>Answers</h3>
      <dl class="fields">
        ${Object.entries(operation.responses).map(([status, one]) => html`
          <div key=${status}><dt><code>${status}</code></dt><dd>${one.description}</dd></div>
        `)}
      </dl>
    </details>
  `;
}

function Page({ document }) {
  const operations = Object.entries(document.paths).flatMap(([path, methods]) => (
    Object.entries(methods).map(([method, operation]) => ({ path, method, operation }))));
  const tags = [...new Set(operations.map(({ operation }) => operation.tags?.[0] || 'Other'))];
  return html`
    <main class="docs">
      <h1>${document.info.title} ${document.info.version}</h1>
      <p>${document.info.description} <a href="./">The studio</a>, <a href="openapi.json">this as JSON</a>.</p>
      ${tags.map((tag) => html`
        <section key=${tag}>
          <h2>${tag}</h2>
          ${operations.filter(({ operation }) => (operation.tags?.[0] || 'Other') === tag).map((one) => html`
            <${Operation} key=${`${one.method} ${one.path}`} document=${document} ...${one} />
          `)}
        </section>
      `)}
    </main>
  `;
}

const place = document.getElementById('docs');
json('/openapi.json').then(
  (found) => render(html`<${Page} document=${found} />`, place),
  (problem) => render(html`<p class="docs">${problem.message} Give the key in the <a href="./">studio</a> first.</p>`, place),
);
